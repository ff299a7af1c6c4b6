"""A plain GPT in PyTorch, written here for comparison: same shapes and initial scale as ours, nothing clever (extra `bench`)."""

import sys
from typing import Any

if __name__ == "__main__":  # before torch, which may be missing
    print(__doc__)
    sys.exit()

import torch
from torch import nn
from torch.nn import functional as F

from tinygpt import GPTConfig


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = config.n_embd
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(c), nn.LayerNorm(c)
        self.c_attn, self.c_proj = nn.Linear(c, 3 * c, bias=config.qkv_bias), nn.Linear(c, c)
        self.c_fc, self.mlp_proj = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x: Any) -> Any:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.c_proj(y)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class TorchGPT(nn.Module):
    """forward(ids, targets) -> loss. Weights start as GPT-2's; the head is tied."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(config.vocab_size, config.n_embd), nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                residual = name.endswith("proj.weight")  # two of each block are added to the residual stream
                nn.init.normal_(p, std=config.initializer_range / ((2 * config.n_layer) ** 0.5 if residual else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Any, targets: Any) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class TorchTrainer:
    """One whole update as a PyTorch user writes it: forward, backward, clip to norm 1, fused AdamW (decay on matrices only)."""

    def __init__(
        self, config: GPTConfig, n_threads: int, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1, seed: int = 0
    ) -> None:
        torch.set_num_threads(n_threads)
        torch.manual_seed(seed)
        self.model = TorchGPT(config)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=betas, fused=True)

    def update(self, ids: Any, targets: Any, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(torch.from_numpy(ids), torch.from_numpy(targets))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def loss(self, ids: Any, targets: Any) -> float:
        return self.model(torch.from_numpy(ids), torch.from_numpy(targets)).item()
