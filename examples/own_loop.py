"""mtbench in anybody's training loop: no task, no trainer, no configuration."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import mtbench

torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
grade, size = nn.Linear(32, 3), nn.Linear(32, 1)
model = nn.ModuleList([encoder, grade, size])

x = torch.randn(512, 10)
score = x[:, 0] * x[:, 1] + x[:, 2]
grades = torch.bucketize(score, torch.tensor([-0.5, 0.5]))
sizes = (x[:, 3] ** 2 - score)[:, None]

balancer = mtbench.balancer("cagrad", num_objectives=2, c=0.5)
optimizer = torch.optim.AdamW([*model.parameters(), *balancer.parameters()], lr=1e-3)
for epoch in range(20):
    for batch in torch.randperm(len(x)).split(64):
        z = encoder(x[batch])
        losses = {
            "grade": cross_entropy(grade(z), grades[batch]),
            "size": mse_loss(size(z), sizes[batch]),
        }
        optimizer.zero_grad()
        weights = balancer.backward(losses)
        optimizer.step()
    print(f"epoch {epoch}: grade {losses['grade'].item():.3f}, size {losses['size'].item():.3f}")
