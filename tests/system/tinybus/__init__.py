"""Two services that share work and facts: `desk` sends, `works` handles."""
