"""A profile as a table, and as a picture of what each layer costs."""

from __future__ import annotations

from pathlib import Path

from vpipe_cli.render import text
from worker.errors import UsageError
from worker.spec.profile import Profile

COLOURS = {"forward": "#4c78a8", "input_grad": "#f58518", "weight_grad": "#72b7b2", "update": "#54a24b"}


def describe(profile: Profile, path: Path) -> str:
    """A line a layer, the links, and where it is kept."""
    width = max(len(layer.name) for layer in profile.layers)
    heads = ("forward", "input grad", "weight grad", "recompute", "update", "spread", "kept", "cut", "weights")
    lines = [f"{'layer':{width}} " + " ".join(f"{head:>11}" for head in heads)]
    for layer in profile.layers:
        times = (layer.forward, layer.input_grad, layer.weight_grad, layer.recompute, layer.update)
        sizes = (layer.activation_bytes, layer.output_bytes, layer.parameter_bytes)
        cells = [*map(text.span, times), text.percent(layer.spread), *map(text.size, sizes)]
        lines.append(f"{layer.name:{width}} " + " ".join(f"{cell:>11}" for cell in cells))
    total = sum(layer.seconds for layer in profile.layers)
    lines += [
        "",
        f"{text.span(total)} a minibatch forward and backward; measured {profile.repeats} times on {profile.device}, "
        f"{profile.processes} processes side by side with {profile.threads} threads each",
    ]
    for link in profile.links:
        lines.append(
            f"link      {text.span(link.latency)}, {text.size(link.forward)}/s there, {text.size(link.backward)}/s back"
        )
    if profile.speeds:
        lines.append(f"speeds    {', '.join(f'{speed:g}' for speed in profile.speeds)}, relative to the first device")
    lines.append(f"a rank holds {text.size(profile.base_bytes)} besides its layers")
    return "\n".join([*lines, f"kept in   {path}"])


def draw(profile: Profile, path: Path) -> None:
    """Two bars a layer: seconds by kind, bytes by kind. Raises UsageError where it cannot be drawn or written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing a picture needs matplotlib", "pip install 'vpipe[worker]'") from None
    layers = profile.layers
    figure = Figure(figsize=(max(7.0, 3 + 0.35 * len(layers)), 6), dpi=110, layout="constrained")
    times, sizes = figure.subplots(2, 1, sharex=True)
    places, bottoms = range(len(layers)), [0.0] * len(layers)
    for kind, colour in COLOURS.items():
        heights = [1e3 * getattr(layer, kind) for layer in layers]
        times.bar(places, heights, bottom=bottoms, color=colour, label=kind.replace("_", " "))
        bottoms = [a + b for a, b in zip(bottoms, heights, strict=True)]
    bottoms = [0.0] * len(layers)
    kinds = {"parameter_bytes": "weights", "optimizer_bytes": "optimizer", "activation_bytes": "kept for backward"}
    for (kind, label), colour in zip(kinds.items(), ("#4c78a8", "#54a24b", "#f58518"), strict=True):
        heights = [getattr(layer, kind) / 2**20 for layer in layers]
        sizes.bar(places, heights, bottom=bottoms, color=colour, label=label)
        bottoms = [a + b for a, b in zip(bottoms, heights, strict=True)]
    times.set(ylabel="ms a minibatch", title=f"what each layer costs on {profile.device}")
    sizes.set(ylabel="MiB")
    sizes.set_xticks(list(places), [layer.name[:24] for layer in layers], rotation=90, fontsize=7)
    for axes in (times, sizes):
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)  # beside the bars, over none
        axes.grid(axis="y", alpha=0.25)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
