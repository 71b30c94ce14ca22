"""accelerate's own accumulation loop on an epoch that ends inside a window, beside the gradient of
that window.

python -m tests.campaigns.today_accelerate_tail        (seen with accelerate 1.15.0, torch 2.13.0,
November 2026)

`accelerator.accumulate()` divides each micro-batch by the constant K. 10 micro-batches with K = 4
make windows of 4, 4 and 2: the third gets 2/4 of its gradient. Isobatch divides by what the window
holds; the last column is its error.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import Array, argv, distance, flat, record, steps, tiny, whole_batch
from train.models.mlp import MLP

SAMPLES, MICRO, K = 20, 2, 4


def accelerates(weights: Array) -> list[Array]:
    """What accelerate's loop gives the optimizer in each window of one epoch, at these weights."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=K)
    module = MLP(inputs=6, hidden=[8], outputs=3).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(weights), module.parameters())
    order = torch.from_numpy(np.concatenate(steps(SAMPLES, MICRO * K)))
    data = tiny(SAMPLES).with_format("torch", dtype=torch.float64)[:]
    loader = DataLoader(
        TensorDataset(data["inputs"][order], data["labels"][order].long()), batch_size=MICRO
    )
    # the weights stay, so that the windows can be compared
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    module, optimizer, loader = accelerator.prepare(module, optimizer, loader)
    gradients = []
    for inputs, labels in loader:
        with accelerator.accumulate(module):
            accelerator.backward(cross_entropy(module(inputs), labels))
            if accelerator.sync_gradients:
                gradients.append(flat([p.grad for p in module.parameters()]))
            optimizer.step()
            optimizer.zero_grad()
    return gradients


def main() -> None:
    batch = (
        f"data.args.size={SAMPLES}",
        f"batch.effective={MICRO * K}",
        f"batch.micro={MICRO}",
        "optimizer.lr=1e-300",
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = argv(Path(folder), *batch)
        with contextlib.redirect_stdout(io.StringIO()):
            ours = record(arguments)
        theirs = accelerates(ours.weights[0])
        print(
            "| step | micro-batches | accelerate: gradient / true | Isobatch: relative error "
            "|\n|---|---|---|---|"
        )
        for k, ids in enumerate(steps(SAMPLES, MICRO * K), start=1):
            _, true = whole_batch(arguments, ours.weights[0], ids, cross_entropy)
            ratio = np.linalg.norm(theirs[k - 1]) / np.linalg.norm(true)
            print(
                f"| {k} | {len(ids) // MICRO} | {ratio:.12f} | "
                f"{distance(ours.gradients[k], true):.1e} |"
            )


if __name__ == "__main__":
    main()
