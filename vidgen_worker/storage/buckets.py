"""The wanted and the actual settings of a bucket, and their differences."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as it is created when missing. `max_bytes` limits each object."""

    name: str
    public: bool
    max_bytes: int
    media_types: tuple[str, ...]
    least_bytes: int = 0
    """An existing bucket that takes less would refuse ordinary outputs."""
    further_types: tuple[str, ...] = ()
    """What it is created to take as well: only films bring it."""
    for_films: bool = False
    """Whether films are cut here: then further types that an existing bucket refuses are said."""
    vital: bool = True
    """Whether work that is paid for needs it: else no misfit of it is fatal."""


@dataclass(frozen=True, slots=True)
class Found:
    """A bucket as it is. None: no limit of its own, any media type."""

    public: bool
    max_bytes: int | None
    media_types: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Misfit:
    """A setting of a bucket that does not fit; a `fatal` one loses outputs or exposes them."""

    bucket: str
    setting: str
    value: str
    wanted: str
    fatal: bool = True

    @property
    def remedy(self) -> str:
        """The remedy for the operator."""
        return f"Dashboard → Storage → {self.bucket} → Edit bucket: {self.wanted}"

    def __str__(self) -> str:
        """The difference and its remedy, as a sentence."""
        return f"bucket {self.bucket}: {self.setting} is {self.value}. {self.remedy}"


def misfits(wanted: Bucket, found: Found) -> list[Misfit]:
    """Compare a bucket with what the settings ask of it."""
    wrong = []
    vital = wanted.vital
    if found.public != wanted.public:
        is_, should = ("public", "private") if found.public else ("private", "public")
        wrong.append(Misfit(wanted.name, "visibility", is_, f"make it {should}", fatal=vital))
    limit, least = found.max_bytes, min(wanted.least_bytes or wanted.max_bytes, wanted.max_bytes)
    if limit is not None and limit < wanted.max_bytes:
        said = f"raise file_size_limit to {wanted.max_bytes} bytes"
        fatal = vital and limit < least
        wrong.append(Misfit(wanted.name, "file_size_limit", f"{limit} bytes", said, fatal=fatal))
    further = wanted.further_types if wanted.for_films else ()
    for types, fatal in ((wanted.media_types, vital), (further, False)):
        refused = [type_ for type_ in types if not _takes(found.media_types, type_)]
        if refused:
            value = ", ".join(found.media_types or ())
            said = f"add {', '.join(refused)} to allowed_mime_types, or allow any"
            wrong.append(Misfit(wanted.name, "allowed_mime_types", value, said, fatal=fatal))
    return wrong


def _takes(patterns: tuple[str, ...] | None, media_type: str) -> bool:
    """Whether allowed media types include this one; as Storage does it: image/* is a wildcard."""
    return not patterns or bool({media_type, f"{media_type.partition('/')[0]}/*"} & {*patterns})
