# SPDX-License-Identifier: MIT OR Apache-2.0
"""Trains a packaged demo model: `python -m training.train`, or with `--model rwkv`.

Interrupted, it goes on from its last checkpoint; the same recipe leads to the same model up to
the rounding of the machine's kernels.
"""

import argparse
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

from torch_mi.errors import MIError, ModelError
from torch_mi.model import MIModel
from torch_mi.storage import read_json, read_tensors, write_json, write_tensors
from training import batches, muon, recipe
from training import evaluate as figures
from training import tokenizer as tokens
from training.recipe import RECIPES, Recipe

SHIPPED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
PLACES = {"llama": Path("src/torch_mi/demo"), "rwkv": Path("src/torch_mi/demo/rwkv")}
"""Where each model is packaged."""


def matrices_of(backend: nn.Module) -> set[str]:
    """The parameters that map vectors to vectors; embedding and unembedding are tables."""
    linear = {name for name, module in backend.named_modules() if isinstance(module, nn.Linear)}
    return {f"{name}.weight" for name in linear - {"head"}}


class Trainer:
    """A model in training: its optimiser, its step, and the folder where both survive."""

    def __init__(self, plan: Recipe, work: Path) -> None:
        """Begin, or go on from the checkpoint in `work`."""
        self.plan, self.work = plan, work
        self.resumes = (work / "progress.json").exists()
        if not self.resumes:
            tokens.save(tokens.build(plan.seed), work)
        self.tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
        self.model = self.load()
        self.parameters = dict(self.model.backend.named_parameters())
        chosen = matrices_of(self.model.backend)
        matrices = [p for name, p in self.parameters.items() if name in chosen]
        others = [p for name, p in self.parameters.items() if name not in chosen]
        by_matrix = muon.Muon if plan.float32 else torch.optim.Muon
        by_vector = AdamW(others, betas=(0.9, 0.98), weight_decay=plan.vector_decay)
        self.optimizers: dict[Optimizer, float] = {
            by_matrix(matrices, weight_decay=plan.weight_decay): plan.matrix_rate,
            by_vector: plan.learning_rate,
        }
        """Each optimiser and its learning rate."""
        self.step = self.seconds = self.seen = 0
        if self.resumes:
            self.restore()

    def load(self) -> MIModel:
        if self.resumes:
            return MIModel.from_pretrained(self.work, device="cpu")
        return recipe.begin(self.work, self.tokenizer.get_vocab_size(), self.plan)

    def restore(self) -> None:
        """The optimiser and the counters as the checkpoint has them."""
        progress = read_json(self.work / "progress.json")
        if progress["recipe"] != asdict(self.plan):
            raise ModelError(
                f"{self.work} holds a checkpoint of another recipe, {progress['recipe']}; give the "
                "same arguments to go on, or --fresh to begin again"
            )
        state = read_tensors(self.work / "optimizer.safetensors")
        self.step, self.seconds, self.seen = (
            int(str(progress[key])) for key in ("step", "seconds", "seen")
        )
        owner = self.owner()
        for key, value in state.items():
            name, kind = key.split("/")
            p = self.parameters[name]
            owner[p].state[p][kind] = value

    def owner(self) -> dict[Tensor, Optimizer]:
        """The optimiser of each parameter."""
        groups = ((o, group) for o in self.optimizers for group in o.param_groups)
        return {p: o for o, group in groups for p in group["params"]}

    def save(self) -> None:
        """A checkpoint: model, optimiser, then the note that says both are there."""
        weights = recipe.hugging_face_weights(self.model, self.work)
        write_tensors(self.work / "model.safetensors", weights)
        owner = self.owner()
        state = {
            f"{name}/{key}": value
            for name, p in self.parameters.items()
            for key, value in owner[p].state[p].items()
        }
        write_tensors(self.work / "optimizer.safetensors", state)
        counters = {"step": self.step, "seconds": self.seconds, "seen": self.seen}
        write_json(self.work / "progress.json", {"recipe": asdict(self.plan), **counters})

    def train_step(self) -> float:
        """One update; the mean loss of its targets."""
        plan = self.plan
        for optimizer, rate in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * plan.pace(self.step)
        found = batches.rectangles(batches.rows(self.tokenizer, plan, self.step))
        total = sum(float(r.weights.sum()) for r in found)
        loss = 0.0
        for r in found:
            logits = self.model.forward(r.ids, grad=True).output[:, :-1]
            each = cross_entropy(logits.flatten(0, 1), r.ids[:, 1:].flatten(), reduction="none")
            part = (each * r.weights[:, 1:].flatten()).sum() / total
            part.backward()
            loss += float(part.detach())
            self.seen += int((r.weights > 0).sum())
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss

    def run(self, every: int) -> None:
        """Train to the end; every `every` steps print how it goes and save."""
        started, before = time.monotonic(), self.seconds
        losses: list[float] = []
        while self.step < self.plan.steps:
            losses.append(self.train_step())
            self.seconds = before + round(time.monotonic() - started)
            if self.step % 50 == 0:
                mean = sum(losses) / len(losses)
                losses.clear()
                print(f"step {self.step:6}  loss {mean:.4f}  {self.seconds} s", flush=True)
            if self.step % every == 0 or self.step == self.plan.steps:
                self.save()
                print(figures.show(figures.evaluate(self.model, 40, seed=1)), flush=True)


def publish(trainer: Trainer, out: Path) -> None:
    """Copy what is shipped from the work folder to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        shutil.copyfile(trainer.work / name, out / name)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a packaged demo model.")
    parser.add_argument("--model", choices=sorted(RECIPES), default="llama")
    parser.add_argument("--out", type=Path, help="where the packaged one lies, unless given")
    parser.add_argument("--work", type=Path, help="training/out/MODEL, unless given")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--documents", type=int, help="per step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--fresh", action="store_true", help="ignore an earlier checkpoint")
    args = parser.parse_args()
    args.out = args.out or PLACES[args.model]
    args.work = args.work or Path("training/out") / args.model
    for name in ("steps", "documents", "learning_rate", "every"):
        value = vars(args)[name]
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    return args


def main() -> None:
    """Train, show the figures, and put the model where it is shipped from."""
    args = arguments()
    asked = {name: vars(args)[name] for name in ("seed", "steps", "documents", "learning_rate")}
    changes = {name: value for name, value in asked.items() if value is not None}
    plan = replace(RECIPES[args.model], **changes)
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    try:
        trainer = Trainer(plan, args.work)
        trainer.run(args.every)
        publish(trainer, args.out)
        print(figures.show(figures.evaluate(MIModel.from_pretrained(args.out, device="cpu"))))
    except MIError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
