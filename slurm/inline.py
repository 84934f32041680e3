"""The inline executor: stages one after another, in this process."""

from slurm.executor import Run
from slurm.ledger import Ledger, StageRecord
from slurm.plan import working
from slurm.runner import run_stage
from slurm.signals import leaving


class InlineExecutor:
    """Runs each stage here. A stage that fails does not stop those that do not need it."""

    name = "inline"

    def in_flight(self, ledger: Ledger, record: StageRecord) -> str:
        """Nothing of an earlier inline run lives on without the process that holds the run."""
        return ""

    def execute(self, run: Run) -> int:
        """Run the plan's stages in order; a signal ends the run after the stage has saved its state."""
        with leaving():
            for decision in working(run.plan):
                reason = run.blocked_by(decision)
                if reason:
                    run.block(decision, reason)
                    continue
                run.tell(decision, "running", decision.reason)
                ending = run_stage(decision.stage, run.ledger, self.name)
                record = run.ledger.read(decision.stage.name)
                assert record is not None
                run.tell(decision, ending.state, ending.reason, record.attempts[-1].seconds)
                if ending.signum:
                    return ending.signum
        return 0
