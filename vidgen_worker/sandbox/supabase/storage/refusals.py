"""Storage's error answers, as they were observed at the real server.

Most are sent as HTTP 400, with the real status as text in the body; `code` is the newer name of
what happened, `error` the older one, which clients compare.
"""

from starlette.responses import JSONResponse

MISSING, REFUSED = 404, 403


class StorageRefusalError(Exception):
    """An error answer. `http` is the HTTP status, `status` the one in the body."""

    def __init__(
        self, status: int, error: str, message: str, *, code: str, http: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.code = code
        # Only an error of the server itself has its real status in HTTP as well.
        self.http = http or (500 if status == 500 else 400)  # noqa: PLR2004

    @property
    def body(self) -> dict[str, str]:
        """The answer's body."""
        return {
            "statusCode": str(self.status),
            "error": self.error,
            "message": self.message,
            "code": self.code,
        }

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.http)


class GatewayRefusalError(StorageRefusalError):
    """The gateway's own answer: the request never reaches Storage."""

    @property
    def body(self) -> dict[str, str]:
        """The answer's body."""
        hint = "Double check your Supabase `anon` or `service_role` API key."
        return {"message": self.message, "hint": hint}


def invalid(message: str) -> StorageRefusalError:
    """Return the refusal of a request that its schema does not admit."""
    return StorageRefusalError(400, "Error", message, code="InvalidRequest")


def denied(message: str) -> StorageRefusalError:
    """Return the refusal of a caller who may not."""
    return StorageRefusalError(REFUSED, "Unauthorized", message, code="AccessDenied")


def bad_type(media_type: str) -> StorageRefusalError:
    """Return the refusal of a media type."""
    text = f"mime type {media_type} is not supported"
    return StorageRefusalError(415, "invalid_mime_type", text, code="InvalidMimeType")


def bad_key(name: str) -> StorageRefusalError:
    """Return the refusal of an object's name."""
    return StorageRefusalError(400, "InvalidKey", f"Invalid key: {name}", code="InvalidKey")


def database_error(sqlstate: str) -> StorageRefusalError:
    """Return the answer to an error of PostgreSQL that has no answer of its own."""
    text = f"database error, code: {sqlstate}"
    return StorageRefusalError(500, "DatabaseError", text, code="DatabaseError")


NO_BUCKET = StorageRefusalError(
    MISSING, "Bucket not found", "Bucket not found", code="NoSuchBucket"
)
NO_OBJECT = StorageRefusalError(MISSING, "not_found", "Object not found", code="NoSuchKey")
DUPLICATE = StorageRefusalError(
    409, "Duplicate", "The resource already exists", code="ResourceAlreadyExists"
)
NOT_EMPTY = StorageRefusalError(
    409,
    "ResourceNotEmpty",
    "The bucket you tried to delete is not empty",
    code="ResourceNotEmpty",
)
TOO_LARGE = StorageRefusalError(
    413, "Payload too large", "The object exceeded the maximum allowed size", code="EntityTooLarge"
)
NO_RELATION = StorageRefusalError(
    MISSING, "InvalidRequest", "The related resource does not exist", code="InvalidRequest"
)
BAD_BUCKET_NAME = StorageRefusalError(
    400, "Invalid Input", "Bucket name invalid", code="InvalidBucketName"
)
NO_CONTENT = StorageRefusalError(
    400, "InvalidRequest", "No content provided", code="InvalidRequest"
)
NO_AUTHORIZATION = invalid("headers must have required property 'authorization'")
NO_TOKEN = invalid("querystring must have required property 'token'")
REFUSED_BY_POLICY = denied("new row violates row-level security policy")
UNAUTHORIZED = denied("Invalid Compact JWS")
BAD_SIGNATURE = StorageRefusalError(
    400, "InvalidSignature", "Invalid signature", code="InvalidSignature"
)
UNKNOWN_KEY = GatewayRefusalError(401, "", "Invalid API key", code="", http=401)
INTERNAL = StorageRefusalError(500, "Internal", "Internal Server Error", code="InternalError")
TOO_MANY = StorageRefusalError(
    429,
    "too_many_connections",
    "Too many connections issued to the database",
    code="SlowDown",
    http=429,
)
TIMED_OUT = StorageRefusalError(
    544,
    "DatabaseTimeout",
    "The connection to the database timed out",
    code="DatabaseTimeout",
    http=544,
)


def bad_token(message: str) -> StorageRefusalError:
    """Return the refusal of a signed address."""
    return StorageRefusalError(400, "InvalidJWT", message, code="InvalidJWT")
