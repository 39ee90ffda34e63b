"""Letters to customers, by SMTP."""

from __future__ import annotations

import os
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage

from polywire import App, Reject, RetryLater
from shop.backoffice import Confirmation, Mail, MailCount
from shop.database import Database, open_database
from shop.money import euros

app = App("mail")

SENDER = "orders@shop.example"
SMTP_TIMEOUT = 5.0
"""Seconds for each answer of the mail server. A letter takes six, less than the task's own limit."""


def smtp_server() -> tuple[str, int]:
    """Host and port of $SHOP_SMTP."""
    host, _, port = os.environ.get("SHOP_SMTP", "127.0.0.1:8025").rpartition(":")
    return host, int(port)


def create_tables(database: Database) -> None:
    database.run("CREATE TABLE mails (order_id TEXT PRIMARY KEY, email TEXT NOT NULL) WITHOUT ROWID")


@app.resource
def database() -> Iterator[Database]:
    with open_database("mail", create_tables, threads=True) as database:
        yield database


@app.service
class MailService(Mail):
    def __init__(self, database: Database) -> None:
        self._database = database

    # A plain function: it runs in a thread, where waiting for the mail server holds up nobody else.
    def send_confirmation(self, mail: Confirmation) -> None:  # type: ignore[override]  # a task may be a plain function
        """A letter that was sent is noted and not sent again. Between sending and noting a crash makes it two, which
        no mail server can help; both have the same Message-ID."""
        if self._database.value("SELECT count(*) FROM mails WHERE order_id = ?", mail.order_id):
            return
        try:
            _send(_letter(mail))
        except smtplib.SMTPRecipientsRefused as refused:
            code, text = refused.recipients[mail.email]
            answer = f"{code} {text.decode(errors='replace')}"
            if code >= 500:
                raise Reject(f"{mail.email!r} gets no mail: {answer}") from refused
            raise RetryLater(f"{mail.email!r} gets no mail now: {answer}") from refused
        except OSError as trouble:  # of smtplib, too
            raise RetryLater(
                f"the mail server {':'.join(map(str, smtp_server()))} did not take it: {trouble}"
            ) from trouble
        self._database.run("INSERT OR IGNORE INTO mails VALUES (?, ?)", mail.order_id, mail.email)

    async def count_mails(self) -> MailCount:
        return MailCount(sent=self._database.value("SELECT count(*) FROM mails"))


def _letter(mail: Confirmation) -> EmailMessage:
    letter = EmailMessage()
    letter["From"] = SENDER
    letter["To"] = mail.email
    letter["Subject"] = f"Your order {mail.order_id}"
    letter["Message-ID"] = f"<{mail.order_id}@shop.example>"
    goods = "\n".join(
        f"{line.quantity:4} x {line.name:<40} {euros(line.quantity * line.price_cents):>16}" for line in mail.lines
    )
    letter.set_content(f"Thank you. These are on their way:\n\n{goods}\n\nTogether {euros(mail.total_cents)}.\n")
    return letter


def _send(letter: EmailMessage) -> None:
    host, port = smtp_server()
    with smtplib.SMTP(host, port, local_hostname="shop.example", timeout=SMTP_TIMEOUT) as server:
        server.send_message(letter)
