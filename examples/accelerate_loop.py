"""mtbench in a loop with Hugging Face Accelerate: pip install 'mtbench-toolkit[accelerate]'."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from mtbench.integrations.accelerate import backward
from mtbench_baselines.uw import UncertaintyWeighting

torch.manual_seed(0)
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
encoder = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
model = nn.ModuleList([encoder, nn.Linear(32, 3), nn.Linear(32, 1)])
balancer = UncertaintyWeighting(num_objectives=2).to(accelerator.device)
groups = [
    {"params": model.parameters()},
    {"params": balancer.parameters(), "weight_decay": 0.0},
]
x = torch.randn(512, 10)
score = x[:, 0] * x[:, 1] + x[:, 2]
grades = torch.bucketize(score, torch.tensor([-0.5, 0.5]))
sizes = (x[:, 3] ** 2 - score)[:, None]
data = torch.utils.data.TensorDataset(x, grades, sizes)

encoder, grade, size, optimizer, loader = accelerator.prepare(
    *model,
    torch.optim.AdamW(groups, lr=3e-3),
    torch.utils.data.DataLoader(data, batch_size=64, shuffle=True),
)
accelerator.register_for_checkpointing(balancer)

for epoch in range(20):
    for inputs, grade_of, size_of in loader:
        with accelerator.accumulate(encoder, grade, size):
            z = encoder(inputs)
            losses = [cross_entropy(grade(z), grade_of), mse_loss(size(z), size_of)]
            backward(accelerator, balancer, losses)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    balancer.after_epoch()
    print(f"epoch {epoch}: grade {losses[0].item():.3f}, size {losses[1].item():.3f}")
