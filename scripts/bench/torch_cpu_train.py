"""The PyTorch side of the CPU benchmark: training steps, or predictions, of one model in samples per second.

    .venv-fixtures/bin/python scripts/bench/torch_cpu_train.py --config configs/bench-cpu.config.json

A training step is forward, backward, clipping and AdamW in float32 with frozen vision, and runs what the public code
runs: K whole sequences a sample, pictures encoded once for each, logits of every position, no recomputation. A
prediction (--predict) is one observation in the mode `ensemble`: H·A tokens decoded with a key-value cache, and 4
DDIM steps of which the first runs the whole sequence and the others the last tokens against its cache; each of the
two encodes and prefills for itself.

--lean leaves out what a careful PyTorch user would: pictures are encoded once a sample, logits made only where there
are labels, and both heads of a prediction share one prefill. Attention is scaled_dot_product_attention, AdamW the
fused one.
--check compares the loss, or the predicted actions, with scripts/fixtures/reference.py instead of measuring.

Prints one JSON object: {"samples_per_s", "ms": {"min", "median", "max"}}. The environment is described in reference.py.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures"))
from reference import ADAM, CLIP_NORM, HybridVla, Policy, Schedule, action_token_ids, ddim_timesteps  # noqa: E402

IGNORE = -100
DDIM_STEPS = 4


class Workload:
    """Random inputs of one size; every sample has the same prompt length, so that nothing is padded."""

    def __init__(self, config, arguments):
        self.config, self.lean, self.branches = config, arguments.lean, arguments.branches
        views, size = len(config["cameras"]), config["vision"][0]["image_size"]
        count = 1 if arguments.predict else arguments.batch
        shape = (count, config["action_chunk"], config["action_dim"])
        special = config["special_tokens"]
        words = torch.randint(
            3, config["action_tokens"]["base"] - config["action_tokens"]["bins"], (count, arguments.prompt)
        )
        words[:, -1] = special["empty"]
        prompts = torch.cat([torch.full((count, 1), special["bos"]), words], dim=1)
        self.batch = {
            "images": torch.randint(0, 256, (count, views, size, size, 3), dtype=torch.uint8),
            "prompt_ids": prompts.int(),
            "state": torch.rand(count, config.get("state_dim", config["action_dim"])) * 2 - 1,
            "actions": torch.rand(shape) * 2 - 1,
            "noise": torch.randn(count, self.branches, *shape[1:]),
            "timesteps": torch.randint(0, config["diffusion"]["steps"], (count, self.branches)).int(),
        }


def encode(model, images):
    """U8 [N, V, S, S, 3] → [N, V·P, D]."""
    with torch.no_grad():
        features = model.vision_features(images.flatten(0, 1))
    return model.image_tokens(features).unflatten(0, images.shape[:2]).flatten(1, 2)


def prefix_of(model, image_tokens, prompts, state):
    rows = len(prompts)
    parts = [model.embed(prompts[:, :1]), image_tokens, model.embed(prompts[:, 1:])]
    parts.append(model.embed(model.special("bod")).expand(rows, 1, -1))
    if model.state_dim:
        parts.append(model.proprio_embedder(state)[:, None])
    return torch.cat(parts, dim=1)


def loss_of(model, workload, alpha_bar):
    """The hybrid loss of a batch: K repeats of everything along the batch dimension."""
    batch, repeats = workload.batch, workload.branches
    count, horizon, action_dim = batch["actions"].shape
    actions, prompts = batch["actions"].repeat(repeats, 1, 1), batch["prompt_ids"].long().repeat(repeats, 1)
    noise = batch["noise"].transpose(0, 1).flatten(0, 1)
    timesteps = batch["timesteps"].T.flatten()
    if workload.lean:
        image_tokens = encode(model, batch["images"]).repeat(repeats, 1, 1)
    else:
        image_tokens = encode(model, batch["images"].repeat(repeats, 1, 1, 1, 1))
    prefix = prefix_of(model, image_tokens, prompts, batch["state"].repeat(repeats, 1))
    bar = alpha_bar[timesteps][:, None, None]
    x = bar.sqrt() * actions + (1 - bar).sqrt() * noise
    labels = torch.from_numpy(action_token_ids(batch["actions"].numpy(), workload.config)).flatten(1).repeat(repeats, 1)
    labels = torch.cat([labels, model.special("eos").expand(len(labels), 1)], dim=1)
    marks = torch.cat([model.special("eod"), model.special("empty")]).expand(len(labels), 2)
    tail = model.embed(torch.cat([marks, labels], dim=1))
    sequence = torch.cat([prefix, model.t_embedder(timesteps)[:, None], model.x_embedder(x), tail], dim=1)

    llm, start = model.llm_backbone.llm, prefix.shape[1] + 1
    if workload.lean:
        hidden = llm.model(inputs_embeds=sequence, use_cache=False)[0]
        logits = llm.lm_head(hidden[:, -labels.shape[1] - 1 : -1])
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    else:
        padded = torch.full(sequence.shape[:2], IGNORE)
        padded[:, -labels.shape[1] :] = labels
        out = llm(inputs_embeds=sequence, labels=padded, output_hidden_states=True, use_cache=False)
        hidden, loss = out.hidden_states[-1], out.loss
    noise_pred = model.final_layer(hidden[:, start : start + horizon])
    return loss + F.mse_loss(noise_pred, noise)


def train_step(model, workload, optimizer, alpha_bar):
    optimizer.zero_grad(set_to_none=True)
    loss_of(model, workload, alpha_bar).backward()
    nn.utils.clip_grad_norm_(model.trained().values(), CLIP_NORM)
    optimizer.step()


def run_cached(model, embeddings, cache, lean):
    """Hidden states of `embeddings` behind the cache (None: nothing), logits of the last position, the longer cache."""
    llm = model.llm_backbone.llm
    if lean:
        out = llm.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        return out.last_hidden_state, llm.lm_head(out.last_hidden_state[:, -1]), out.past_key_values
    out = llm(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, output_hidden_states=True)
    return out.hidden_states[-1], out.logits[:, -1], out.past_key_values


def denoise(model, prefix, cache, noise, schedule, lean):
    """DDIM. Without a cache the first step runs the prefix too."""
    x, kept = noise, ddim_timesteps(schedule.steps, DDIM_STEPS)
    for timestep, previous in zip(kept, kept[1:] + [None], strict=True):
        bar, bar_previous = schedule.alpha_bar[timestep], 1.0 if previous is None else schedule.alpha_bar[previous]
        part = torch.cat([model.t_embedder(torch.tensor([timestep]))[:, None], model.x_embedder(x)], dim=1)
        if cache is None:
            part = torch.cat([prefix, part], dim=1)
        hidden, _, longer = run_cached(model, part, cache, lean)
        cache = tuple((key[:, :, : prefix.shape[1]], value[:, :, : prefix.shape[1]]) for key, value in longer)
        eps = model.final_layer(hidden[:, -x.shape[1] :])
        x = math.sqrt(bar_previous / bar) * (x - math.sqrt(1 - bar) * eps) + math.sqrt(1 - bar_previous) * eps
    return x


def decode(model, prefix, cache, workload, lean):
    """Greedy action tokens behind t | x | <EOD> 29871, with a probability each. Without a cache the prefix runs too."""
    config, noise = workload.config, workload.batch["noise"][:, 0]
    base, bins = config["action_tokens"]["base"], config["action_tokens"]["bins"]
    timestep = torch.tensor([config["diffusion"]["steps"] - 1])
    marks = model.embed(torch.cat([model.special("eod"), model.special("empty")])[None])
    part = torch.cat([model.t_embedder(timestep)[:, None], model.x_embedder(noise), marks], dim=1)
    if cache is None:
        part = torch.cat([prefix, part], dim=1)
    ids, confidences = [], []
    for _ in range(config["action_chunk"] * config["action_dim"]):
        _, logits, cache = run_cached(model, part, cache, lean)
        ids.append(base - bins + logits[:, base - bins : base].argmax(-1))
        confidences.append(logits.softmax(-1)[0, ids[-1]])
        part = model.embed(ids[-1][None])
    return torch.cat(ids), torch.cat(confidences)


@torch.inference_mode()
def predict(model, workload, schedule):
    """The denoised action, the tokens and their probabilities."""
    batch, lean = workload.batch, workload.lean

    def observe():
        return prefix_of(model, encode(model, batch["images"]), batch["prompt_ids"].long(), batch["state"])

    prefix, cache = observe(), None
    if lean:
        _, _, cache = run_cached(model, prefix, None, True)
    ids, confidences = decode(model, prefix, cache, workload, lean)
    if not lean:
        prefix = observe()
    return denoise(model, prefix, cache, batch["noise"][:, 0], schedule, lean), ids, confidences


def check_loss(model, workload, schedule):
    alpha_bar = torch.from_numpy(schedule.alpha_bar).float()
    with torch.no_grad():
        own, expected = loss_of(model, workload, alpha_bar).item(), model.run(workload.batch)["loss"].item()
    print(json.dumps({"loss": own, "reference": expected}))
    return abs(own - expected) <= 1e-4 * abs(expected)


def check_prediction(model, workload, schedule):
    batch = workload.batch
    policy = Policy(model, batch["images"][0], batch["prompt_ids"][0], batch["state"][0])
    noise = batch["noise"][0, 0]
    expected = policy.ddim(noise, DDIM_STEPS)
    ids, confidences, _ = policy.action_tokens((noise, schedule.steps - 1))
    action, own_ids, own_confidences = predict(model, workload, schedule)
    error = float((action[0] - expected).norm() / expected.norm())
    confidence_error = float((own_confidences - torch.tensor(confidences)).abs().max() / max(confidences))
    print(json.dumps({"ddim": error, "confidences": confidence_error, "tokens": own_ids.tolist(), "reference": ids}))
    return error <= 1e-4 and confidence_error <= 1e-4 and own_ids.tolist() == ids


def measure(step, warmup, steps):
    times = []
    for i in range(warmup + steps):
        start = time.perf_counter()
        step()
        if i >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config.json of a model")
    parser.add_argument("--predict", action="store_true", help="measure predictions instead of training steps")
    parser.add_argument("--lean", action="store_true", help="leave out what the public code computes twice")
    parser.add_argument("--check", action="store_true", help="compare with the reference instead of measuring")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--branches", type=int, default=4, help="K, draws of (t, eps) a sample")
    parser.add_argument("--prompt", type=int, default=26, help="tokens of the prompt behind <s>")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = json.loads(arguments.config.read_text())
    if config.get("objective", "hybrid") != "hybrid":
        raise SystemExit(f"{arguments.config}: the benchmark is for the objective hybrid")
    model, schedule = HybridVla(config, attention="sdpa"), Schedule(config["diffusion"]["steps"])
    workload = Workload(config, arguments)
    if arguments.check:
        agrees = (check_prediction if arguments.predict else check_loss)(model, workload, schedule)
        raise SystemExit(0 if agrees else "this and the reference differ")
    if arguments.predict:
        samples = 1
        ms = measure(lambda: predict(model, workload, schedule), arguments.warmup, arguments.steps)
    else:
        samples = arguments.batch
        optimizer = torch.optim.AdamW(model.trained().values(), lr=2e-5, fused=True, **ADAM)
        alpha_bar = torch.from_numpy(schedule.alpha_bar).float()
        ms = measure(lambda: train_step(model, workload, optimizer, alpha_bar), arguments.warmup, arguments.steps)
    print(json.dumps({"samples_per_s": 1000 * samples / ms["median"], "ms": ms}))


if __name__ == "__main__":
    main()
