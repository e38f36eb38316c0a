"""Every verb by its name: a line about it, and where it is.

A verb's module is imported when the verb runs, or its own help is asked for: no verb waits for
what only another one needs. It knows no verb's options.
"""

import gc
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


@dataclass(frozen=True, slots=True)
class Verb:
    """A line that a list of verbs shows whole at 80 columns, and `module.name` in this folder.

    What stands there is the verb's function, or a Typer that holds further verbs.
    """

    line: str
    place: str


@dataclass(frozen=True, slots=True)
class Family:
    """Verbs that share their first word."""

    line: str
    verbs: Mapping[str, Verb]


VERBS: Mapping[str, Verb | Family] = {
    "run": Verb("Run the worker until SIGTERM or Ctrl-C.", "work.run"),
    "init": Verb("Write a file of settings to fill in.", "init.init"),
    "migrate": Verb("Bring the database up to this version.", "work.migrate"),
    "check": Verb("Show the settings, and test each dependency.", "check.check"),
    "demo": Verb("Show all of it at work on this machine, without any account.", "demo.demo"),
    "sandbox": Verb("Keep a Supabase project running on this machine.", "sandbox.verbs"),
    "enqueue": Verb("Order the video of a scene, or a film.", "orders.enqueue"),
    "tasks": Family("Look at tasks, cancel them, try them again.", {
        "list": Verb("List the newest tasks.", "tasks.list_tasks"),
        "show": Verb("Show one task's whole story.", "tasks.show"),
        "watch": Verb("Show a task until it has ended.", "tasks.watch"),
        "cancel": Verb("Cancel a task, or all that fit.", "changes.cancel"),
        "retry": Verb("Put ended tasks back into the queue.", "changes.retry"),
    }),
    "stats": Verb("Show the queue, throughput, failures, cost, workers.", "stats.stats"),
    "workers": Verb("List every worker.", "stats.workers"),
    "dashboard": Verb("Show all of this in a browser.", "dashboard.dashboard"),
    "credits": Family("Balances, grants and the audit of both.", {
        "grant": Verb("Add credits to a user's balance.", "credit.grant"),
        "show": Verb("Show a user's balance and its newest entries.", "credit.show"),
        "audit": Verb("Compare each balance with its ledger and holds.", "credit.audit"),
    }),
    "limits": Family("Users whom their own limits keep back; lift the limits.", {
        "list": Verb("List the users who are stopped, slowed, or near it.", "limits.list_limits"),
        "show": Verb("Show what a user has used of each limit.", "limits.show"),
        "lift": Verb("Lift a user's limits.", "limits.lift"),
    }),
    "gate": Family("A closed gate pauses new paid submissions of a model.", {
        "list": Verb("List every closed gate.", "gate.list_gates"),
        "close": Verb("Close a gate for every worker.", "gate.close"),
        "open": Verb("Open a gate, whoever closed it.", "gate.open_gate"),
    }),
    "webhooks": Family("Addresses that are told of ends by signed requests.", {
        "list": Verb("List every webhook, and its last answer.", "webhooks.list_webhooks"),
        "add": Verb("Add a webhook; shows its secret once.", "webhooks.add"),
        "test": Verb("Send a test, which enables a webhook.", "webhooks.send_test"),
        "rotate": Verb("Make a new secret.", "webhooks.rotate"),
        "resend": Verb("Send again what has ended since a time.", "webhooks.resend"),
        "remove": Verb("Remove a webhook.", "webhooks.remove"),
        "deliveries": Verb("List the newest deliveries.", "webhooks.deliveries"),
    }),
    "reconcile": Verb("Compare the provider's counters with ours.", "reconcile.reconcile"),
    "prune": Verb("Remove tasks that ended long ago.", "prune.prune"),
}  # fmt: skip


class Later(TyperCommand):
    """A verb that is imported when it is used."""

    def __init__(self, name: str, verb: Verb) -> None:
        super().__init__(name=name, help=verb.line, rich_markup_mode=None)
        self._place = verb.place

    def load(self) -> Any:  # noqa: ANN401 - the parser's own command, without a public type
        """Import the verb and return its command."""
        module, _, attribute = self._place.partition(".")
        found = getattr(import_module(f"vidgen_worker.cli.{module}"), attribute)
        app = found
        if not isinstance(found, typer.Typer):
            app = typer.Typer()
            app.command(self.name)(found)
        app.rich_markup_mode = None
        app._add_completion = False  # noqa: SLF001 - of the whole command line's options
        return typer.main.get_command(app)

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as above
        """Read its arguments; from here on the verb itself goes on."""
        context = self.load().make_context(*args, **options)
        gc.freeze()  # what is imported stays
        gc.enable()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            # Until now Ctrl-C ended the process at once: a module that is being imported would make
            # another exception of it. A verb may have something to clear away.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return context


def commands() -> dict[str, Any]:
    """Return a command for each name, for the parser."""
    return {name: _command(name, entry) for name, entry in VERBS.items()}


def _command(name: str, entry: Verb | Family) -> TyperCommand | TyperGroup:
    if isinstance(entry, Verb):
        return Later(name, entry)
    return TyperGroup(
        name=name, help=entry.line, no_args_is_help=True, rich_markup_mode=None,
        commands={word: Later(word, verb) for word, verb in entry.verbs.items()},
    )  # fmt: skip
