"""The begin and end of every verb: `vidgen-worker` and `python -m vidgen_worker` alike.

Before anything large is imported, Ctrl-C ends the process with one line, and the three streams are
made to take whatever is printed. After it, an error that nobody expected becomes one sentence. It
knows nothing of what the verbs do.
"""

import codecs
import contextlib
import errno
import gc
import os
import signal
import sys

INTERRUPTED = 130
INTERRUPTED_SAID = "Interrupted.\n"
FAILED = 1
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
READER_LEFT = 141
"""The shell's code for a program whose reader has left: 128 and SIGPIPE."""
_PLAIN = str.maketrans({
    "\u2013": "-", "\u2014": "-", "\u2026": "...", "\u2192": "->", "\u00d7": "x", "\u2019": "'",
    "\u2713": "+", "\u2717": "x", "\u2190": "<-", "\u2265": ">=", "\u2264": "<=", "\u2501": "-",
    "\u2500": "-", "\u2578": "-", "\u257a": "-", "\u2502": "|",
})  # fmt: skip


def main() -> None:
    """Run the command line. Whatever happens, the process ends with a documented code."""
    gc.disable()  # imports leave no garbage; where a verb begins it is enabled again
    # Pydantic would look through every installed package for plugins of its own.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:  # not where the shell started us with it ignored
        signal.signal(signal.SIGINT, _end_at_once)
    _open_streams()
    try:
        from vidgen_worker.cli import app  # noqa: PLC0415 - it takes a tenth of a second
        from vidgen_worker.telemetry.late_log import catch_the_rest, configure_late  # noqa: PLC0415

        configure_late(_set_up_the_log)
        catch_the_rest()
        try:
            app(
                prog_name="vidgen-worker"
            )  # where a verb begins it turns Ctrl-C into an exception again
        finally:
            if ours:
                signal.signal(signal.SIGINT, _end_at_once)
        _flush()
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED_SAID)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _leave_quietly()
    except SystemExit:
        try:
            _flush()
        except BrokenPipeError:
            _leave_quietly()
        raise
    except Exception as error:  # noqa: BLE001 - the last place where a sentence can be made of it
        _say(error)
        sys.exit(FAILED)


def _set_up_the_log() -> None:
    from vidgen_worker.telemetry.log import configure  # noqa: PLC0415 - most verbs log nothing

    configure("warning")


def _end_at_once(number: int, frame: object) -> None:
    """End while there is nothing to clear away; an exception would come out of some import."""
    del number, frame
    with contextlib.suppress(OSError):
        os.write(2, INTERRUPTED_SAID.encode())
    os._exit(INTERRUPTED)


def _open_streams() -> None:
    """Replace closed streams, and let every text be written in any encoding."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest that is free: no socket is to get a number that children write to.
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("vidgen_worker", _spelled)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        stream.reconfigure(errors="vidgen_worker")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks in ASCII: as it looks where that is possible."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _leave_quietly() -> None:
    """Nobody reads any more: say nothing, not even at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    sys.exit(READER_LEFT)


def _say(error: Exception) -> None:
    """Say what nobody expected, in one sentence; the whole traceback where debugging is asked for.

    Nothing of ours may be needed for it: the import itself may be what failed.
    """
    try:
        from vidgen_worker.domain.foreign_text import printable  # noqa: PLC0415

        said = printable(f"{type(error).__name__}: {error}", 1000)
    except Exception:  # noqa: BLE001 - then its kind has to do
        said = type(error).__name__
    if isinstance(error, OSError) and error.errno in NOT_WRITTEN:
        print(
            f"What is printed can't be written: {os.strerror(error.errno or 0)}. Make room, or "
            "send it elsewhere, and run it again.",
            file=sys.stderr,
        )
        return
    print(
        f"Something went wrong that vidgen-worker did not expect: {said}\n"
        "Run it again; if it stays, run it with VIDGEN_LOG_LEVEL=debug and report what it says.",
        file=sys.stderr,
    )
    if os.environ.get("VIDGEN_LOG_LEVEL", "").lower() == "debug":
        import logging  # noqa: PLC0415

        logging.getLogger("video_generation").error("unexpected", exc_info=error)


if __name__ == "__main__":
    main()
