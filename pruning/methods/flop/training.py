"""Train gates and weights together with the Trainer of transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, Trainer

from pruning.data.batch import Batch
from pruning.methods.flop.constraint import Cost, Lagrangian
from pruning.methods.flop.gating import product
from pruning.methods.flop.recipe import Recipe
from pruning.tasks.training import NonFiniteGuard, arguments, collator, run


@dataclass
class Goal:
    """The share of the cost that training is to save."""

    cost: Cost
    target: float
    warmup: int  # steps over which it grows, from what is saved at the start

    def at(self, step: int, start: float) -> float:
        """Return what is asked for at a step."""
        return start + (self.target - start) * min(1.0, step / max(1, self.warmup))


class GateTrainer(Trainer):
    """The task's loss plus the Lagrangian; weights, gates and multipliers at rates of their own."""

    def __init__(self, model: PreTrainedModel, goal: Goal, method: Recipe, **options: Any):
        self.gated = {site: product(model, site) for site in goal.cost.sites}
        self.goal, self.method = goal, method
        self.start = self.saved = float(self._saved().detach())  # at the start, in the last step
        self.losses: list[float] = []  # of the task, since the last log
        model.lagrangian = Lagrangian(method.penalty).to(
            model.device
        )  # in the model, so in its checkpoints
        super().__init__(model, **options)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over tokens

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """Return the loss of a batch under the constraint of this step."""
        outputs = model(**inputs)
        saved = self._saved()
        self.saved = float(saved.detach())
        self.losses.append(float(outputs.loss.detach()))
        loss = outputs.loss + model.lagrangian(saved, self._asked())
        return (loss, outputs) if return_outputs else loss

    def _saved(self) -> Tensor:
        ranks = {site: module.gates.rank() for site, module in self.gated.items()}
        return self.goal.cost.saved(ranks)

    def _asked(self) -> float:
        return self.goal.at(self.state.global_step, self.start)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make Adam of three groups; the multipliers climb."""
        assert isinstance(self.model, nn.Module)
        m = self.method
        gates = [module.gates.log_alpha for module in self.gated.values()]
        multipliers = list(self.model.lagrangian.parameters())  # type: ignore[union-attr]
        groups = [
            {"params": weights(self.model), "lr": m.learning_rate},
            {"params": gates, "lr": m.gate_learning_rate},
            {"params": multipliers, "lr": m.multiplier_learning_rate, "maximize": True},
        ]
        self.optimizer = torch.optim.Adam(groups)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Let the rate of the weights rise for a tenth of the steps and fall to 0; others stay."""

        def falling(step: int) -> float:
            return min(1.0, 10 * (step + 1) / num_training_steps) * (1 - step / num_training_steps)

        def constant(step: int) -> float:
            return 1.0

        optimizer = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(optimizer, [falling, constant, constant])
        return self.lr_scheduler

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the constraint to what is logged."""
        assert isinstance(self.model, nn.Module)
        lagrangian = self.model.lagrangian
        assert isinstance(lagrangian, Lagrangian)
        if "loss" in logs:
            logs |= {
                "task_loss": sum(self.losses) / len(self.losses),
                "saved": self.saved,
                "target": self._asked(),
                "multiplier_linear": float(lagrangian.linear.detach()),
                "multiplier_quadratic": float(lagrangian.quadratic.detach()),
            }
            self.losses.clear()
        super().log(logs, *args, **kwargs)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that are neither gates nor multipliers."""
    named = model.named_parameters()
    return [p for n, p in named if not n.endswith("log_alpha") and "lagrangian." not in n]


def train(
    model: PreTrainedModel,
    goal: Goal,
    method: Recipe,
    batches: list[Batch],
    seed: int,
    directory: Path,
) -> list[dict[str, float]]:
    """Train in place and return the logged curves; goes on from a checkpoint in `directory`."""
    trainer = GateTrainer(
        model,
        goal,
        method,
        args=arguments(
            directory,
            model.device,
            method.steps,
            per_device_train_batch_size=method.batch_size,
            learning_rate=method.learning_rate,
            save_steps=method.save_steps,
            seed=seed,
        ),
        data_collator=collator(model),
        train_dataset=[row for batch in batches if not batch.held_out for row in batch.rows()],
        callbacks=[
            NonFiniteGuard("method.learning_rate", method.max_grad_norm, directory, weights)
        ],
    )
    model.config.use_cache = False
    run(trainer, directory)
    return [entry for entry in trainer.state.log_history if "loss" in entry]
