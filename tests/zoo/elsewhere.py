"""Models and trainers of other projects, compressed and trained for a step; prints a table for docs/results/zoo.md.

``python -m tests.zoo.elsewhere`` needs timm, torchvision, Lightning and accelerate, which the test suite does not.
"""

import importlib.metadata
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import accelerate
import torch
from torch import nn

import smh

OPERATORS = "The compiled operators of torchvision, such as `nms`, are skipped: they were built for another PyTorch."
try:
    import torchvision
except RuntimeError:  # no model here uses them

    def registered(name, *args, of=torch.library.register_fake, **options):
        """Register an operator unless it is one of torchvision's."""
        return (lambda function: function) if str(name).startswith("torchvision::") else of(name, *args, **options)

    with mock.patch("torch.library.register_fake", registered):
        import torchvision
else:
    OPERATORS = ""

import lightning  # noqa: E402  (which imports torchvision, like timm)
import timm  # noqa: E402

X = torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
MODELS = {
    f"timm {name}": lambda name=name, options=options: timm.create_model(name, num_classes=4, **options)
    for name, options in {
        "resnet18": {},
        "mobilenetv3_small_050": {},
        "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
        "convnext_atto": {},
    }.items()
} | {
    f"torchvision {name}": lambda name=name: torchvision.models.get_model(name, num_classes=4)
    for name in ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")
}


def check_model(make):
    """Raise unless a model takes a step, and its file and plain twin give the outputs of the compressed model."""
    model = smh.compress(make(), ratio=0.2)
    before = smh.digest(model)
    model.train()(X).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    if smh.digest(model) == before:
        raise RuntimeError("the weights did not move")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "model.safetensors")
        smh.save(path, model)
        y = model.eval()(X)
        for twin in (smh.load(path, make()), smh.materialize(model)):
            if not torch.equal(twin.eval()(X), y):
                raise RuntimeError("outputs differ")


def net():
    """Return a small compressed model, and a loader of batches for it."""
    model = smh.compress(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)), ratio=0.3)
    return model, torch.utils.data.DataLoader(torch.randn(16, 8), 4)


def check_lightning():
    """Raise unless Lightning's trainer trains a compressed model."""

    class Task(lightning.LightningModule):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def training_step(self, batch, index):
            return self.inner(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), 1e-2)

    model, loader = net()
    before = smh.digest(model)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options).fit(Task(model), loader)
    if smh.digest(model) == before:
        raise RuntimeError("the weights did not move")


def check_accelerate():
    """Raise unless accelerate prepares, trains and restores a compressed model."""
    accelerator = accelerate.Accelerator(cpu=True)
    model, loader = net()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2), loader)
    before = smh.digest(model)
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(model(batch).square().mean())
            optimizer.step()
        if smh.digest(model) == before:
            raise RuntimeError("the weights did not move")
        accelerator.load_state(folder)
    if smh.digest(model) != before:
        raise RuntimeError("the state was not restored")


def main():
    """Run everything, and print the table; exit with 1 if anything failed."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    checks = {name: lambda make=make: check_model(make) for name, make in MODELS.items()}
    checks |= {"Lightning Trainer": check_lightning, "accelerate Accelerator": check_accelerate}
    packages = ("torch", "timm", "torchvision", "lightning", "accelerate")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print("# Models and trainers of other projects\n")
    print(f"Made by `python -m tests.zoo.elsewhere` with {versions}. {OPERATORS}".strip())
    print("\n| what | result |\n| --- | --- |")
    failed = False
    for name, check in checks.items():
        result = "passes"
        try:
            check()
        except Exception as error:
            failed, result = True, f"fails: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        print(f"| {name} | {result} |", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
