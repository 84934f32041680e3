"""The inline executor: stages one after another, in this process."""

from typing import Any

from carryover.slurm.executor import Run
from carryover.slurm.plan import working
from carryover.slurm.runner import run_stage


class InlineExecutor:
    """Runs each stage here. A stage that fails does not stop those that do not need it."""

    name = "inline"

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing is to be set."""
        return {}

    def execute(self, run: Run) -> int:
        """Run the plan's stages in order; a signal ends the run after the stage has saved its state."""
        for decision in working(run.plan):
            reason = run.blocked_by(decision)
            if reason:
                run.block(decision, reason)
                continue
            elsewhere = run.waits_for(decision)
            if elsewhere:
                run.tell(decision, "waiting", f"for {elsewhere}: {run.outcomes[elsewhere].reason}")
                continue
            run.tell(decision, "running", decision.reason)
            ending = run_stage(decision.stage, run.ledger, self.name)
            run.tell(decision, ending.state, ending.reason, run.record(decision).attempts[-1].seconds)
            if ending.signum:
                return ending.signum
        return 0
