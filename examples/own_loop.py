"""SOAR in your own loop: a two-dimensional mixture, a small network, and `soar_backward` where
`loss.backward()` was.

`python examples/own_loop.py` trains for a few seconds on the CPU and prints base and correction
loss."""

import torch
from torch import nn

from soarflow import SOARConfig, soar_backward

torch.manual_seed(0)
CENTERS = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
net = nn.Sequential(
    nn.Linear(2 + 1 + 4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
config = SOARConfig(num_steps=30, cfg_scale=1.5, correction_weight=1.0, num_aux_points=2)


def predictor(label):  # label 3 is "no condition"
    condition = nn.functional.one_hot(label, 4).float()
    return lambda z, sigma: net(torch.cat([z, sigma[:, None], condition], dim=1))


for step in range(2001):
    label = torch.randint(3, (256,))
    x0 = CENTERS[label] + 0.2 * torch.randn(256, 2)
    label = torch.where(torch.rand(256) < 0.1, 3, label)
    noise, sigma = torch.randn(256, 2), torch.rand(256).clamp(min=1e-3)
    result = soar_backward(
        predictor(label),
        x0,
        noise,
        sigma,
        config,
        predict_uncond=predictor(torch.full_like(label, 3)),
    )
    optimizer.step()
    optimizer.zero_grad()
    if step % 400 == 0:
        print(
            f"step {step:4d}  base {result.base:.3f}  correction {result.correction:.3f}  step "
            f"size {result.step_size:.4f}"
        )
