"""The customers: who they are, and someone to talk to."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator

from polywire import AlreadyExists, App, InvalidArgument, NotFound
from shop.contracts import (
    ChatMessage,
    NewUser,
    User,
    UserChange,
    UserList,
    UserQuery,
    Users,
    UsersCreated,
)
from shop.database import Database, Row, open_database

app = App("users")

SEEDED = 400
MOST_AT_ONCE = 1_000
_FIRST = [
    "Ada",
    "Alan",
    "Barbara",
    "Donald",
    "Edsger",
    "Frances",
    "Grace",
    "Hedy",
    "Katherine",
    "Ken",
    "Margaret",
    "Radia",
]
_LAST = [
    "Allen",
    "Backus",
    "Dijkstra",
    "Hamilton",
    "Hopper",
    "Johnson",
    "Knuth",
    "Lamarr",
    "Liskov",
    "Lovelace",
    "Perlman",
]
_CITIES = ["Aarhus", "Berlin", "Cork", "Delft", "Evora", "Fribourg", "Graz", "Haifa"]


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE users (
            number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE, city TEXT NOT NULL
        )""")
    database.run("CREATE INDEX users_by_city ON users (city, number)")


def invite_customers(database: Database) -> None:
    dice = random.Random(2)
    names = [(dice.choice(_FIRST), dice.choice(_LAST)) for _ in range(SEEDED)]
    database.run_many(
        "INSERT INTO users (name, email, city) VALUES (?, ?, ?)",
        [
            (f"{first} {last}", f"{first}.{last}.{number}@example.com".lower(), dice.choice(_CITIES))
            for number, (first, last) in enumerate(names, start=1)
        ],
    )


@app.resource
def database() -> Iterator[Database]:
    with open_database("users", create_tables, invite_customers) as database:
        yield database


@app.service
class UserService(Users):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_user(self, query: UserQuery) -> User:
        return _user(self._row(query.user_id))

    async def list_users(self, request: UserList) -> AsyncIterator[User]:
        """Read in batches, each where the last one ended: a slow reader holds no cursor and little memory."""
        last = 0
        while True:
            rows = self._database.all(
                "SELECT * FROM users WHERE number > ? AND (? = '' OR city = ?) ORDER BY number LIMIT 100",
                last, request.city, request.city,
            )  # fmt: skip
            for row in rows:
                yield _user(row)
            if len(rows) < 100:
                return
            last = rows[-1]["number"]

    async def create_users(self, users: AsyncIterator[NewUser]) -> UsersCreated:
        new: list[NewUser] = []
        async for user in users:
            if len(new) == MOST_AT_ONCE:
                raise InvalidArgument(f"No user was created: at most {MOST_AT_ONCE} can be created at once.")
            new.append(user)
        with self._database.transaction():
            return UsersCreated(user_ids=[self._create(user) for user in new])

    def _create(self, user: NewUser) -> str:
        try:
            return _user_id(
                self._database.value(
                    "INSERT INTO users (name, email, city) VALUES (?, ?, ?) RETURNING number",
                    user.name, user.email, user.city,
                )
            )  # fmt: skip
        except sqlite3.IntegrityError as error:
            raise _email_taken(user.email) from error

    async def change_user(self, change: UserChange) -> User:
        try:
            self._database.run(
                "UPDATE users SET name = coalesce(?, name), email = coalesce(?, email), city = coalesce(?, city)"
                " WHERE number = ?",
                change.name, change.email, change.city, _number(change.user_id),
            )  # fmt: skip
        except sqlite3.IntegrityError as error:
            raise _email_taken(change.email or "") from error
        return _user(self._row(change.user_id))

    async def chat(self, messages: AsyncIterator[ChatMessage]) -> AsyncIterator[ChatMessage]:
        agent = Agent()
        async for message in messages:
            if message.user_id and not agent.customer:
                agent.customer = self._row(message.user_id)["name"]
            yield ChatMessage(text=agent.answer(message.text))
            if agent.said_goodbye:
                return

    def _row(self, user_id: str) -> Row:
        row = self._database.one("SELECT * FROM users WHERE number = ?", _number(user_id))
        if row is None:
            raise NotFound(f"There is no user {user_id!r}.")
        return row


def _user(row: Row) -> User:
    return User(user_id=_user_id(row["number"]), name=row["name"], email=row["email"], city=row["city"])


def _user_id(number: int) -> str:
    return f"U-{number}"


def _number(user_id: str) -> int:
    """0, which nobody has, where it is no user id."""
    matched = re.fullmatch(r"U-([0-9]{1,18})", user_id)
    return int(matched[1]) if matched else 0


def _email_taken(email: str) -> AlreadyExists:
    return AlreadyExists(f"Somebody has the email {email!r} already.")


class Agent:
    """Answers one customer: knows few things, but remembers what was said."""

    def __init__(self) -> None:
        self.customer = ""
        self.said_goodbye = False
        self._questions = 0
        self._order = ""

    def answer(self, text: str) -> str:
        said = set(re.findall(r"[a-z]+", text.lower()))
        order = re.search(r"\bord-[0-9a-f]+\b", text.lower())
        self._order = order[0] if order else self._order
        if said & {"bye", "goodbye"}:
            self.said_goodbye = True
            asked = "1 question" if self._questions == 1 else f"{self._questions} questions"
            return f"Goodbye{self._comma_name()}. You asked {asked} today."
        if said & {"hello", "hi", "hey"}:
            return f"Hello{self._comma_name()}. How can I help?"
        self._questions += 1
        if not self._order:
            return "Which order is it about? Its number begins with 'ord-'."
        if said & {"refund", "cancel"}:
            return f"Cancel order {self._order} in the shop, and the money is back at once."
        return f"Order {self._order} is on its way. Anything else?"

    def _comma_name(self) -> str:
        return f", {self.customer.split()[0]}" if self.customer else ""
