"""Messages as e-mail, over SMTP."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import urllib.parse
from email.message import EmailMessage

from stabwatch.agent.receivers import SMTP, TIMEOUT, Message, Refused
from stabwatch.errors import ConfigError

_LOCAL = ("localhost", "127.0.0.1", "::1")


class Email:
    """E-mail to one or more addresses. address: smtp://USER:PASSWORD@HOST:PORT/?to=A,B&from=C, or smtps://.

    smtp:// is encrypted with STARTTLS where the server offers it. A password is never sent unencrypted to another
    machine.
    """

    name = "mail server"

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        asked = urllib.parse.parse_qs(parts.query)
        self._to = [one.strip() for one in ",".join(asked.get("to", [])).split(",") if "@" in one]
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or not self._to:
            raise ConfigError(f"{SMTP} must be smtp://user:password@host:port/?to=address, or smtps://.")
        self._tls = parts.scheme == "smtps"
        try:
            self._server = (parts.hostname, parts.port or (465 if self._tls else 587))
        except ValueError:
            raise ConfigError(f"{SMTP} has a port that is none.") from None
        self._login = (urllib.parse.unquote(parts.username or ""), urllib.parse.unquote(parts.password or ""))
        self._from = (asked.get("from") or [""])[0] or f"stabwatch@{socket.gethostname()}"

    def send(self, message: Message) -> None:
        """Deliver a message. Raises Refused."""
        mail = EmailMessage()
        mail["Subject"] = re.sub(r"[\x00-\x1f\x7f]+", " ", f"[stabwatch] {message.title}")[:200]
        mail["From"], mail["To"] = self._from, ", ".join(self._to)
        mail.set_content(message.text)
        try:
            self._deliver(mail)
        except smtplib.SMTPResponseException as error:
            raise Refused(f"it answers {error.smtp_code}", 400 <= error.smtp_code < 500) from None
        except smtplib.SMTPRecipientsRefused as error:
            code = max((code for code, _ in error.recipients.values()), default=500)
            raise Refused(f"it refuses the addresses ({code})", code < 500) from None
        except (OSError, smtplib.SMTPException) as error:  # some texts contain the address
            raise Refused(type(error).__name__, True) from None

    def _deliver(self, mail: EmailMessage) -> None:
        host, port = self._server
        context = ssl.create_default_context()
        client = (
            smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=context)
            if self._tls
            else smtplib.SMTP(host, port, timeout=TIMEOUT)
        )
        with client:
            client.ehlo()
            if not self._tls and client.has_extn("starttls"):
                client.starttls(context=context)
                client.ehlo()
            elif not self._tls and self._login[0] and host not in _LOCAL:
                raise Refused("it offers no encryption, so the password is not sent", False)
            if self._login[0]:
                client.login(*self._login)
            client.send_message(mail)
