"""`python -m trainer plan`: what a run will need, before it is begun."""

from __future__ import annotations

import argparse
from typing import Any

from episode_store.command_line import CommandLine, not_negative_float, positive_int, print_json, print_table
from trainer import presets
from trainer.config import override


def add_plan(command: CommandLine) -> None:
    """Registers the verb."""
    plan = command.verb(
        "plan",
        _plan,
        help="says what a run will need: memory, time, tokens, money, on hardware that need not be here",
        example="trainer plan --preset 1180m --hardware tpu-v3 --devices 256 --mfu 0.35",
    )
    plan.add_argument("--preset", default="demo", metavar="NAME", help=f"settings: {', '.join(presets.PRESETS)} (demo)")
    plan.add_argument("--steps", type=positive_int, metavar="N", help="optimizer steps (the preset's)")
    plan.add_argument(
        "--hardware",
        default="cpu",
        metavar="NAME",
        help="cpu (this one, measured), h200, h100, a100, l4, t4, tpu-v3",
    )
    plan.add_argument("--devices", type=positive_int, default=1, metavar="N", help="how many of them (1)")
    plan.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak that is used (0.4)")
    plan.add_argument("--shards", metavar="DIR", help="whose tokens are held in memory (as many as the run sees)")
    plan.add_argument(
        "--price", type=not_negative_float, metavar="DOLLARS", help="an hour and device (a list price of 2026)"
    )
    plan.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="any setting, for example model.width=256"
    )


def _plan(arguments: argparse.Namespace) -> int:
    from trainer.cli import assignments
    from trainer.plan import hardware, make_plan
    from trainer.shards import Dataset

    given = assignments(arguments.set)
    if arguments.steps:
        given["steps"] = str(arguments.steps)
    config = override(presets.get(arguments.preset), given)
    plan = make_plan(
        config,
        hardware(arguments.hardware),
        count=arguments.devices,
        utilisation=arguments.mfu,
        price=arguments.price,
        data_tokens=Dataset.open(arguments.shards).num_tokens("train") if arguments.shards else None,
    )
    if arguments.json:
        print_json(plan)
    else:
        print_table(_rows(plan, known=bool(arguments.shards)), ("what", "estimate"))
    return 0


def _rows(plan: dict[str, Any], *, known: bool) -> list[tuple[str, str]]:
    memory = ", ".join(f"{name} {value:.2f}" for name, value in plan["memory_gb"].items() if name != "total")
    fits = "fits" if plan["fits"] else "DOES NOT FIT: more accumulation_steps, checkpoint_activations, sharding=fsdp"
    return [
        ("parameters", f"{plan['parameters']:,}"),
        ("tokens", f"{plan['tokens']:,} in {plan['steps']:,} steps of {plan['tokens_a_step']:,}"),
        ("operations", f"{plan['flops']:.3g}"),
        ("hardware", f"{plan['devices']} x {plan['hardware']}, {plan['assumed_mfu']:.0%} of the peak assumed"),
        ("speed", f"{plan['tokens_per_second']:,.0f} tokens/s"),
        ("time", f"{plan['hours']:,.2f} hours, {plan['device_hours']:,.1f} device hours"),
        ("money", f"${plan['dollars']:,.0f}"),
        ("memory of a device", f"{plan['memory_gb']['total']:.2f} of {plan['device_memory_gb']:.0f} GB: {fits}"),
        ("", f"GB: {memory}"),
        (
            "data set",
            f"{plan['data_set_gb']:,.2f} GB of the machine's memory in each rank: {plan['data_tokens']:,} tokens"
            + ("" if known else ", if each is seen once"),
        ),
        ("checkpoint", f"{plan['checkpoint_gb']:.3f} GB"),
    ]
