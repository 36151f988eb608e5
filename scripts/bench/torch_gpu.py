"""The PyTorch side of the GPU benchmark: the public algorithm's work in plain PyTorch, on a card or on the CPU.

    hvla-train config --config configs/7b.yaml --json >7b.json
    python3 scripts/bench/torch_gpu.py --config 7b.json                      # training, as published
    python3 scripts/bench/torch_gpu.py --config 7b.json --no-checkpointing
    python3 scripts/bench/torch_gpu.py --config 7b.json --predict ensemble
    python3 scripts/bench/torch_gpu.py --check tests/fixtures/parity/one_arm --device cpu --dtype fp32

Needs torch alone (2.1 or newer); --check also safetensors. Training is forward and backward of K whole sequences a sample
with random weights in bf16: pictures encoded for each sequence, every decoder layer recomputed in the backward pass
(--checkpointing, as published), logits of every position, no optimizer. A batch that does not fit is run in parts, whose
size is told. A prediction encodes and prefills once for each head: H·A tokens decoded greedily behind a key-value cache,
and 4 DDIM steps.

--check DIR reads a model directory with the batch and the results of scripts/fixtures/make_parity.py and compares the
loss and the gradients: that the work measured here is the model's.

Prints one JSON object: {"samples_per_s", "ms": {"min", "median", "max"}, …}.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

IGNORE = -100
DDIM_TIMESTEPS = (75, 50, 25, 0)  # of 100
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class VisionAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self, inputs, inner, outputs, activation):
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(inputs, inner), nn.Linear(inner, outputs), activation

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class VisionBlock(nn.Module):
    def __init__(self, vision):
        super().__init__()
        width, eps = vision["width"], vision["layer_norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = VisionAttention(width, vision["num_heads"])
        self.mlp = Mlp(width, vision["mlp_width"], width, ACTIVATIONS[vision["activation"]])
        self.ls1 = LayerScale(width) if vision["layer_scale"] else nn.Identity()
        self.ls2 = LayerScale(width) if vision["layer_scale"] else nn.Identity()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Tower(nn.Module):
    """Pixels in [0, 1] → patch features of the second-to-last block."""

    def __init__(self, vision):
        super().__init__()
        if vision["pre_norm"]:
            raise SystemExit("towers with pre_norm are not part of this benchmark")
        width, size = vision["width"], vision["patch_size"]
        self.patches = (vision["image_size"] // size) ** 2
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, size, size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patches, width))
        if vision["class_token"]:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if vision["register_tokens"]:
            self.reg_token = nn.Parameter(torch.zeros(1, vision["register_tokens"], width))
        self.blocks = nn.ModuleList([VisionBlock(vision) for _ in range(vision["depth"] - 1)])
        self.register_buffer("mean", torch.tensor(vision["image_mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(vision["image_std"]).view(3, 1, 1), persistent=False)

    def forward(self, pixels):
        inputs = ((pixels - self.mean.float()) / self.std.float()).to(self.pos_embed.dtype)
        x = self.patch_embed.proj(inputs).flatten(2).transpose(1, 2) + self.pos_embed
        front = [getattr(self, name) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        x = torch.cat([token.expand(len(x), -1, -1) for token in front] + [x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, -self.patches :]


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class VarianceNorm(nn.Module):
    """The norm of the published final layer: divided by the standard deviation, not centred."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6)


def rotate(x, cos, sin):
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, llm):
        super().__init__()
        width, self.heads, self.kv_heads = (
            llm["hidden_size"],
            llm["num_attention_heads"],
            llm["num_key_value_heads"],
        )
        self.head_dim = width // self.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin, cache):
        split = (-1, self.head_dim)
        q, k, v = (p(x).unflatten(-1, split).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        longer = (k, v)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        mask = None
        if cache is not None and q.shape[2] > 1:
            rows, behind = q.shape[2], k.shape[2] - q.shape[2]
            mask = torch.ones(rows, k.shape[2], dtype=torch.bool, device=q.device).tril(behind)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=cache is None)
        return self.o_proj(y.transpose(1, 2).flatten(2)), longer


class GatedMlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, llm):
        super().__init__()
        width, eps = llm["hidden_size"], llm["rms_norm_eps"]
        self.self_attn, self.mlp = Attention(llm), GatedMlp(width, llm["intermediate_size"])
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(width, eps), RmsNorm(width, eps)

    def forward(self, x, cos, sin, cache):
        y, longer = self.self_attn(self.input_layernorm(x), cos, sin, cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), longer


class Llm(nn.Module):
    def __init__(self, llm):
        super().__init__()
        width = llm["hidden_size"]
        self.theta, self.head_dim = llm["rope_theta"], width // llm["num_attention_heads"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(llm["vocab_size"], width)
        self.model.layers = nn.ModuleList([DecoderLayer(llm) for _ in range(llm["num_hidden_layers"])])
        self.model.norm = RmsNorm(width, llm["rms_norm_eps"])
        self.lm_head = nn.Linear(width, llm["vocab_size"], bias=False)

    def forward(self, x, cache=None, recompute=False):
        """Hidden states after the last norm, and the longer cache (None while training)."""
        first = cache[0][0].shape[2] if cache else 0
        half = torch.arange(0, self.head_dim, 2, device=x.device, dtype=torch.float32) / self.head_dim
        positions = torch.arange(first, first + x.shape[1], device=x.device, dtype=torch.float32)
        angles = positions[:, None] / self.theta**half
        cos, sin = (f(torch.cat([angles, angles], dim=-1)).to(x.dtype) for f in (torch.cos, torch.sin))
        longer = []
        for i, layer in enumerate(self.model.layers):
            if recompute:
                x, _ = checkpoint(layer, x, cos, sin, None, use_reentrant=False)
            else:
                x, kept = layer(x, cos, sin, cache[i] if cache else None)
                longer.append(kept)
        return self.model.norm(x), longer


class HybridVla(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.get("objective", "hybrid") != "hybrid" or config.get("final_norm", "variance") != "variance":
            raise SystemExit("the benchmark is for the objective hybrid with the published final norm")
        self.config = config
        width, inputs = config["llm"]["hidden_size"], sum(v["width"] for v in config["vision"])
        self.state_dim = config.get("state_dim", config["action_dim"])
        tanh = ACTIVATIONS["gelu_tanh"]
        self.vision_backbone = nn.Module()
        for vision in config["vision"]:
            self.vision_backbone.add_module(vision["prefix"].split(".")[1], Tower(vision))
        self.vision_backbone.requires_grad_(False)
        self.projector = nn.Module()
        widths = {"fused-gelu-mlp": (inputs, 4 * inputs, width, width), "gelu-mlp": (inputs, width, width)}.get(
            config["projector"], (inputs, width)
        )
        steps = []
        for a, b in zip(widths, widths[1:]):
            steps += [nn.GELU()] * bool(steps) + [nn.Linear(a, b)]
        self.projector.projector = nn.Sequential(*steps) if len(steps) > 1 else steps[0]
        self.llm_backbone = nn.Module()
        self.llm_backbone.llm = Llm(config["llm"])
        self.x_embedder, self.t_embedder, self.final_layer = nn.Module(), nn.Module(), nn.Module()
        self.x_embedder.mlp = Mlp(config["action_dim"], width, width, tanh)
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.final_layer.norm_final = VarianceNorm(width)
        self.final_layer.mlp = Mlp(width, width, config["action_dim"], tanh)
        if self.state_dim:
            self.proprio_embedder = nn.Module()
            self.proprio_embedder.mlp = Mlp(self.state_dim, width, width, tanh)

    @property
    def llm(self):
        return self.llm_backbone.llm

    def embed(self, ids):
        return self.llm.model.embed_tokens(ids)

    def special(self, name, rows, device):
        ids = self.config["special_tokens"]
        names = [name] if ids[name] is not None else []
        return torch.tensor([ids[n] for n in names], dtype=torch.long, device=device).expand(rows, -1)

    def image_tokens(self, images):
        """U8 [N, V, S, S, 3] → [N, V·P, D]."""
        with torch.no_grad():
            pixels = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0
            features = torch.cat([tower(pixels) for tower in self.vision_backbone.children()], dim=-1)
        return self.projector.projector(features).unflatten(0, images.shape[:2]).flatten(1, 2)

    def prefix(self, images, prompts, state):
        rows, device = len(images), images.device
        parts = [self.embed(prompts[:, :1]), self.image_tokens(images), self.embed(prompts[:, 1:])]
        parts.append(self.embed(self.special("bod", rows, device)))
        if self.state_dim:
            parts.append(self.proprio_embedder.mlp(state)[:, None])
        return torch.cat(parts, dim=1)

    def denoising_tokens(self, x, timesteps):
        half = torch.exp(torch.arange(128, device=x.device) * (-math.log(10000.0) / 128))
        angles = timesteps.float()[:, None] * half
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)
        return torch.cat([self.t_embedder.mlp(sinusoid)[:, None], self.x_embedder.mlp(x)], dim=1)

    def markers(self, rows, device):
        return torch.cat([self.special("eod", rows, device), self.special("empty", rows, device)], dim=1)

    def noise_of(self, hidden):
        return self.final_layer.mlp(self.final_layer.norm_final(hidden))


def alpha_bars(steps):
    def cosine(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - cosine((t + 1) / steps) / cosine(t / steps), 0.999) for t in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


def token_ids(actions, config):
    edges = torch.linspace(-1, 1, config["action_tokens"]["bins"], dtype=torch.float64, device=actions.device)
    return config["action_tokens"]["base"] - torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)


def loss_of(model, batch, recompute):
    """The loss of [N, K] whole sequences; all prompts are equally long."""
    repeats, horizon = batch["noise"].shape[1], batch["actions"].shape[1]
    each = {name: batch[name].repeat_interleave(repeats, dim=0) for name in ("images", "prompt_ids", "state", "actions")}
    noise, timesteps = batch["noise"].flatten(0, 1), batch["timesteps"].flatten()
    dtype, rows, device = model.llm.lm_head.weight.dtype, len(noise), noise.device
    prefix = model.prefix(each["images"], each["prompt_ids"], each["state"].to(dtype))
    bar = alpha_bars(model.config["diffusion"]["steps"]).to(device, torch.float32)[timesteps][:, None, None]
    x = bar.sqrt() * each["actions"] + (1 - bar).sqrt() * noise
    labels = torch.cat([token_ids(each["actions"], model.config).flatten(1), model.special("eos", rows, device)], dim=1)
    tail = model.embed(torch.cat([model.markers(rows, device), labels], dim=1))
    sequence = torch.cat([prefix, model.denoising_tokens(x.to(dtype), timesteps), tail], dim=1)
    hidden, _ = model.llm(sequence, recompute=recompute)
    logits = model.llm.lm_head(hidden).float()
    targets = torch.full(sequence.shape[:2], IGNORE, device=device)
    targets[:, -labels.shape[1] :] = labels
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE)
    start = prefix.shape[1] + 1
    return ce + F.mse_loss(model.noise_of(hidden[:, start : start + horizon]).float(), noise)


@torch.inference_mode()
def diffusion(model, batch):
    bars = alpha_bars(model.config["diffusion"]["steps"]).tolist()
    x, dtype = batch["noise"][:, 0], model.llm.lm_head.weight.dtype
    prefix = model.prefix(batch["images"], batch["prompt_ids"], batch["state"].to(dtype))
    length, cache = prefix.shape[1], None
    for timestep, previous in zip(DDIM_TIMESTEPS, DDIM_TIMESTEPS[1:] + (None,)):
        part = model.denoising_tokens(x.to(dtype), torch.tensor([timestep], device=x.device))
        if cache is None:
            part = torch.cat([prefix, part], dim=1)
        hidden, longer = model.llm(part, cache)
        cache = [(k[:, :, :length], v[:, :, :length]) for k, v in longer]
        eps = model.noise_of(hidden[:, -x.shape[1] :]).float()
        bar, lower = bars[timestep], 1.0 if previous is None else bars[previous]
        x = math.sqrt(lower / bar) * (x - math.sqrt(1 - bar) * eps) + math.sqrt(1 - lower) * eps
    return x


@torch.inference_mode()
def autoregression(model, batch):
    tokens, x, dtype = model.config["action_tokens"], batch["noise"][:, 0], model.llm.lm_head.weight.dtype
    prefix = model.prefix(batch["images"], batch["prompt_ids"], batch["state"].to(dtype))
    last = torch.tensor([model.config["diffusion"]["steps"] - 1], device=x.device)
    part = [prefix, model.denoising_tokens(x.to(dtype), last), model.embed(model.markers(1, x.device))]
    part, cache, ids, confidences = torch.cat(part, dim=1), None, [], []
    for _ in range(x.shape[1] * x.shape[2]):
        hidden, cache = model.llm(part, cache)
        logits = model.llm.lm_head(hidden[:, -1]).float()
        best = logits[:, tokens["base"] - tokens["bins"] : tokens["base"]].argmax(-1) + tokens["base"] - tokens["bins"]
        ids.append(best)
        confidences.append(logits.softmax(-1).gather(1, best[:, None]))
        part = model.embed(best[:, None])
    return torch.cat(ids), torch.cat(confidences).mean().item()


def made_up_batch(config, samples, branches, prompt, device):
    views, size = len(config["cameras"]), config["vision"][0]["image_size"]
    horizon, width = config["action_chunk"], config["action_dim"]
    words = torch.randint(3, config["action_tokens"]["base"] - config["action_tokens"]["bins"], (samples, prompt + 1))
    words[:, 0] = config["special_tokens"]["bos"]
    batch = {
        "images": torch.randint(0, 256, (samples, views, size, size, 3), dtype=torch.uint8),
        "prompt_ids": words,
        "state": torch.rand(samples, config.get("state_dim", width)) * 2 - 1,
        "actions": torch.rand(samples, horizon, width) * 2 - 1,
        "noise": torch.randn(samples, branches, horizon, width),
        "timesteps": torch.randint(0, config["diffusion"]["steps"], (samples, branches)),
    }
    return {name: value.to(device) for name, value in batch.items()}


def run_parts(model, batch, part, recompute):
    """Forward and backward of a batch, `part` samples at a time."""
    model.zero_grad(set_to_none=True)
    samples = len(batch["images"])
    for first in range(0, samples, part):
        piece = {name: value[first : first + part] for name, value in batch.items()}
        (loss_of(model, piece, recompute) * (len(piece["images"]) / samples)).backward()


def largest_part(model, batch, recompute):
    """How many samples fit at a time: all of them, or the largest half, quarter, … that does beside gradients."""
    part = len(batch["images"])
    while True:
        try:
            run_parts(model, {name: value[: 2 * part] for name, value in batch.items()}, part, recompute)
            return part
        except torch.cuda.OutOfMemoryError:
            if part == 1:
                raise
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        part //= 2


def measure(work, warmup, repeats, wait):
    times = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        work()
        wait()
        if i >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def make_model(config, device, dtype):
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = HybridVla(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02)
    return model.eval()


def check(directory, device, dtype):
    """One sample at a time, as prompts differ in length here."""
    from safetensors.torch import load_file

    model = make_model(json.loads((directory / "config.json").read_text()), device, dtype)
    missing, _ = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    if missing:
        raise SystemExit(f"{directory} lacks {missing}")
    batch, expected = load_file(directory / "batch.safetensors"), load_file(directory / "expected.safetensors")
    samples, loss = len(batch["images"]), 0.0
    for i in range(samples):
        piece = {name: value[i : i + 1].to(device) for name, value in batch.items()}
        piece["prompt_ids"] = piece["prompt_ids"][:, piece["prompt_ids"][0] >= 0].long()
        piece["timesteps"] = piece["timesteps"].long()
        part = loss_of(model, piece, recompute=i % 2 == 1) / samples
        part.backward()
        loss += part.item()
    errors = {"loss": abs(loss / expected["loss"].item() - 1)}
    for name, parameter in model.named_parameters():
        if f"grad.{name}" in expected:
            own, right = parameter.grad.float().cpu(), expected[f"grad.{name}"]
            errors[name] = ((own - right).norm() / right.norm()).item()
    worst = max(errors, key=errors.get)
    print(json.dumps({"compared": len(errors), "loss": errors["loss"], "worst": worst, "error": errors[worst]}))
    return errors[worst] <= (1e-3 if dtype == torch.float32 else 0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="JSON of a run configuration, or a model's config.json")
    parser.add_argument("--check", type=Path, metavar="DIR", help="compare with a parity fixture instead of measuring")
    parser.add_argument("--predict", choices=("diffusion", "autoregressive", "ensemble"))
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--branches", type=int, default=4, help="K, draws of (t, eps) a sample")
    parser.add_argument("--prompt", type=int, default=26, help="tokens of the prompt behind <s>")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    if arguments.check:
        raise SystemExit(0 if check(arguments.check, device, dtype) else "this and the fixture differ")
    if not arguments.config:
        parser.error("--config or --check is needed")
    config = json.loads(arguments.config.read_text())
    config = config.get("model", config)
    model = make_model(config, device, dtype)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    out = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    samples = 1 if arguments.predict else arguments.batch
    batch = made_up_batch(config, samples, arguments.branches, arguments.prompt, device)
    if arguments.predict:
        heads = {"diffusion": (diffusion,), "autoregressive": (autoregression,), "ensemble": (diffusion, autoregression)}
        work = [lambda head=head: head(model, batch) for head in heads[arguments.predict]]
        out["mode"] = arguments.predict
        out["ms"] = measure(lambda: [run() for run in work], arguments.warmup, arguments.repeats, wait)
    else:
        out["part"] = part = largest_part(model, batch, arguments.checkpointing)
        out["checkpointing"] = arguments.checkpointing
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # parts that did not fit filled the card
        recompute = arguments.checkpointing
        out["ms"] = measure(lambda: run_parts(model, batch, part, recompute), arguments.warmup, arguments.repeats, wait)
    out["samples_per_s"] = 1000 * samples / out["ms"]["median"]
    if device.type == "cuda":
        out["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
