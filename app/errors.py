"""The base class of all errors. Every error says what was wrong and what to do, and has an HTTP status.

Errors are raised anywhere below the routes. `app.main` renders them as a page, an htmx fragment or JSON; the command
line as text.
"""


class PrefloopError(Exception):
    """An error meant for a person.

    Attributes:
        message: what was wrong, one sentence.
        advice: what the person can do now, one sentence; may be empty.
        status: the HTTP status it renders with.
        is_signed_out: the form can be sent again after signing in, from a new page.
    """

    status = 400
    is_signed_out = False
    title = "That did not work"

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class InvalidInput(PrefloopError):
    """A form, file or argument contains something that cannot be accepted."""

    status = 422
    title = "Please check what you entered"


class NotSignedIn(PrefloopError):
    status = 401
    title = "Please sign in"
    is_signed_out = True


class Forbidden(PrefloopError):
    status = 403
    title = "Not allowed"


class OldForm(Forbidden):
    """A form from a page that belongs to another sign-in."""

    title = "This form came from an old page"
    is_signed_out = True


class NotFound(PrefloopError):
    status = 404
    title = "Not found"


class Conflict(PrefloopError):
    """The thing changed, or the action was already done, since the person looked at it."""

    status = 409
    title = "This changed in the meantime"


class Gone(PrefloopError):
    """A lease, link or session that has expired."""

    status = 410
    title = "This has expired"


class TooMany(PrefloopError):
    """Something was tried too often; it can be tried again later."""

    status = 429
    title = "Too many attempts"


class Unavailable(PrefloopError):
    """The database or a worker cannot be reached right now."""

    status = 503
    title = "Temporarily unavailable"


class StorageFull(PrefloopError):
    """The disk with the artifacts is full."""

    status = 507
    title = "The disk is full"


class ModelUnavailable(PrefloopError):
    """A model that a run needs cannot be found or loaded."""

    title = "A model is missing"
