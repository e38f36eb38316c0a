"""An application with users, scenes and tasks in it, as the tests of SQL and of pipelines need it.

Who builds on it says how a statement reaches the database (`sql`).
"""

from abc import ABC, abstractmethod
from typing import Any
from uuid import UUID, uuid4

Row = dict[str, Any]

KNOWN = "insert into vidgen.user_limits (user_id, first_stored_at) values (%s, now())"
"""A stage of this user's was stored before: he is no newcomer, who has few under way."""


class Application(ABC):
    """One test's database, as its superuser sees it."""

    @abstractmethod
    def sql(self, statement: str, *parameters: object) -> list[Row]:
        """Run one statement as superuser."""

    def one(self, statement: str, *parameters: object) -> Row:
        """The only row of a statement."""
        (row,) = self.sql(statement, *parameters)
        return row

    def user(self, credits_: int = 1000, *, new: bool = False) -> UUID:
        """Make a user with credits, for whom a stage was stored before unless he is new."""
        user_id = uuid4()
        if not new:
            self.sql(KNOWN, user_id)
        if credits_:
            self.sql(
                "select public.grant_video_credits(%s, %s, %s)", user_id, credits_, str(uuid4())
            )
        return user_id

    def insert_scene(self, user_id: UUID, **columns: object) -> UUID:
        """Make a scene of the user; its scenario is missing unless `scenario_id` names one."""
        scene: dict[str, object] = {
            "id": uuid4(), "user_id": user_id, "scenario_id": uuid4(), **columns,
        }  # fmt: skip
        names = ", ".join(scene)
        values = ", ".join(["%s"] * len(scene))
        self.sql(f"insert into public.video_scenes ({names}) values ({values})", *scene.values())
        return UUID(str(scene["id"]))

    def task(self, task_id: UUID) -> Row:
        """The task's row."""
        return self.one("select * from public.video_generation_tasks where id = %s", task_id)

    def credits(self, user_id: UUID) -> tuple[int, int]:
        """Balance and held."""
        row = self.one("select balance, held from public.user_credits where user_id = %s", user_id)
        return row["balance"], row["held"]

    def books_balance(self) -> bool:
        """Whether balances, holds and ledger agree."""
        return self.sql("select * from vidgen.credit_discrepancies") == []
