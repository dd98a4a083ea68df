"""Writes the page of the ablations from their results: tables next to the paper's, a comparison and a plot."""

import io
import json
from pathlib import Path
from statistics import mean, stdev

import matplotlib
from ablations_tables import DROPPED, INEXACT_KEPT, TABLES, Claim, Table

matplotlib.use("Agg")
from matplotlib import pyplot

from vlp.errors import UserError
from vlp.files import write_text
from vlp.report.tables import markdown_table, mean_and_deviation

INK = "#7a8190"  # readable on light and dark pages
MEASURES = {
    "t2i_r1": "text to image R@1",
    "i2t_r1": "image to text R@1",
    "caption_exact": "exact captions",
    "CIDEr": "CIDEr",
}
WORST_FIRST = ("one seed: not as the paper", "one seed: as the paper", "opposite", "undecided", "none seen", "yes")
MODELS = {
    "nucleus": "two models, nucleus",
    "beam": "two models, beam",
    "shared": "one model, nucleus",
    "captions-of-one": "captions of the one, filter of the two",
    "filter-of-one": "captions of the two, filter of the one",
}
QUALITY = {
    "filter_auc": "AUC on web texts",
    "web_texts_kept_right": "correct web texts kept",
    "web_texts_kept_wrong": "wrong web texts kept",
    "synthetic_exact": "exact among synthetic texts",
    "synthetic_kept_exact": "exact among those kept",
    INEXACT_KEPT: "inexact synthetic texts kept",
}
TITLES = MEASURES | {DROPPED: "synthetic texts dropped"} | QUALITY


def collect(output: Path, seeds: list[int]) -> dict:
    """The results in OUTPUT, by stage and seed.

    Returns:
        {"sizes", "machines", "cpu_seconds", "done", "planned", "stages"}; done and planned count the stages of all
        seeds.
    """
    mark = output / "ablations.json"
    if not mark.exists():
        raise UserError(f"{output} holds no ablations; name the output folder of scripts/ablations.sh.")
    settings = json.loads(mark.read_text())
    stages: dict[str, dict[str, dict]] = {}
    machines, seconds, done = set(), 0.0, 0
    for seed in seeds:
        for path in sorted((output / f"seed-{seed}" / "results").glob("[!.]*.json")):
            facts = json.loads(path.read_text())
            machines.add(facts["machine"])
            seconds += facts["cpu_seconds"]
            done += 1
            numbers = facts["numbers"]
            if "kept_texts" in numbers:
                made, kept = (numbers[name].get("synthetic", 0) for name in ("texts", "kept_texts"))
                numbers = {DROPPED: 1 - kept / made, **numbers}
            if "synthetic_kept_exact" in numbers:
                numbers = {INEXACT_KEPT: _inexact_kept(numbers), **numbers}
            stages.setdefault(facts["stage"], {})[str(seed)] = numbers
    return {
        "sizes": settings["sizes"],
        "machines": sorted(machines),
        "cpu_seconds": seconds,
        "done": done,
        "planned": len(seeds) * len(settings["stages"]),
        "stages": stages,
    }


def _inexact_kept(numbers: dict) -> float:
    """The share of inexact synthetic texts that the rules keep; nan if none is inexact."""
    kept = numbers["synthetic_kept"] * (1 - numbers["synthetic_kept_exact"])
    inexact = 1 - numbers["synthetic_exact"]
    return kept / inexact if inexact else float("nan")


def write_page(results: dict, page: Path) -> None:
    """Write PAGE, and next to it the results as .json and the plot as .svg."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    write_text(page.with_suffix(".svg"), plot(results))
    write_text(page, render(results, page.with_suffix(".svg").name, page.with_suffix(".json").name))


def render(results: dict, picture: str, data: str) -> str:
    """The page in Markdown; `picture` and `data` are the names of the files next to it."""
    parts = [
        "# The paper's ablations on synthetic scenes",
        *_introduction(results, data),
        "## Summary",
        _summary(results),
        f"![Scores of every row: one dot per seed and a line at the mean]({picture})",
    ]
    for table in TABLES:
        parts += [f"## Table {table.number}: {table.title}", _table(results, table)]
        parts += [table.note] if table.note else []
        parts += [_claims(results, "claim of the paper", table.claims)]
        parts += [_claims(results, "experiment of ours", table.experiments)] if table.experiments else []
    parts += ["## Filter and captioner compared with the ground truth", _quality(results)]
    return "\n\n".join(parts) + "\n"


def _introduction(results: dict, data: str) -> list[str]:
    sizes, hours = results["sizes"], results["cpu_seconds"] / 3600
    return [
        "`scripts/ablations.sh` trains and evaluates every model below on synthetic scenes and writes this page. All "
        f"of our numbers come from [{data}]({data}).",
        "    scripts/ablations.sh runs/ablations --seeds 0 1 2 --jobs 2 --page docs/ablations.md",
        f"Each seed has its own {sizes['human']:,} human scenes, {sizes['web']:,} web scenes (40% with wrong texts) "
        f"and {sizes['held_out']:,} held-out scenes for evaluation, with images of {sizes['image_size']} pixels. "
        f"Pretrainings take {sizes['pretrain_steps']:,} steps of {sizes['batch_size']} images unless the row says "
        f"otherwise, finetuning the captioner {sizes['captioner_steps']:,} and the filter {sizes['filter_steps']:,}. "
        f"Machine: {'; '.join(results['machines'])}, shared with other jobs. All stages took {hours:.1f} hours of "
        "processor time (for interrupted stages, that of the last call).",
        *_state(results),
        "R@1 is zero-shot on the held-out scenes; ITM re-ranks the 16 best candidates of ITC. A caption is exact if it "
        "names all shapes, colors and sizes and the relation correctly. CIDEr is of the same captions, times 100. "
        "Numbers are percentages, mean ± standard deviation over seeds. The number of held-out scenes alone gives an "
        f"R@1 near 50% a standard error of {100 * (0.25 / sizes['held_out']) ** 0.5:.1f} points.",
        "The paper's numbers are for ViT-B/16 and 14M images: zero-shot retrieval on Flickr30k (IR is text to image, "
        "TR image to text), and CIDEr of captions after finetuning on COCO. Only the order of the rows can be "
        "compared, not the values.",
        "Below each table are the paper's claims and our differences in points between models of the same seed, mean ± "
        'standard deviation. "yes": the difference agrees with the paper and exceeds its standard deviation; '
        '"opposite": it has the opposite sign and exceeds its standard deviation; "undecided": it does not exceed its '
        'standard deviation; "none seen": the same where the paper claims no loss or no gain. For a single seed only '
        "the sign counts. With so few seeds this is a rule of thumb and not a statistical test.",
    ]


def _state(results: dict) -> list[str]:
    """What is not done yet, if anything."""
    if results["done"] == results["planned"]:
        return []
    return [
        f"This page is not complete: {results['done']} of {results['planned']} stages are done. The column seeds "
        "counts the seeds of each row. Rerun the same command to continue, or add `--page-only` to update this page."
    ]


def values(results: dict, stage: str, measure: str) -> dict[str, float]:
    """One measure of a stage by seed."""
    return {seed: one[measure] for seed, one in results["stages"].get(stage, {}).items() if measure in one}


def difference(results: dict, claim: Claim, measure: str) -> tuple[str, str]:
    """The paired difference in points, as text, and the verdict; two dashes if no seed has both stages."""
    first, second = (values(results, stage, measure) for stage in (claim.first, claim.second))
    differences = [100 * (first[seed] - second[seed]) for seed in first if seed in second]
    if not differences:
        return "–", "–"
    if len(differences) == 1:
        agrees = differences[0] > 0 or (differences[0] == 0 and not claim.strict)
        return f"{differences[0]:+.1f}", "one seed: as the paper" if agrees else "one seed: not as the paper"
    middle, spread = mean(differences), stdev(differences)
    if middle < -spread:
        verdict = "opposite"
    elif middle > spread:
        verdict = "yes"
    else:
        verdict = "undecided" if claim.strict else "none seen"
    return f"{middle:+.1f} ± {spread:.1f}", verdict


def _differences(results: dict, claim: Claim) -> dict[str, tuple[str, str]]:
    """`difference` for each measure that the claim is about."""
    return {measure: difference(results, claim, measure) for measure in _measures(claim)}


def _measures(claim: Claim) -> list[str]:
    return [claim.measure] if claim.measure else list(MEASURES)


def _summary(results: dict) -> str:
    """The paper's claims, grouped by verdict, and experiments of ours."""
    heads = {
        "yes": "Our results agree with the paper in every measure:",
        "opposite": "They disagree in at least one measure:",
        "undecided": "They are undecided in at least one measure:",
        "one seed: not as the paper": "On a single seed they disagree with the paper in at least one measure:",
        "one seed: as the paper": "On a single seed they agree with the paper in every measure:",
        "open": "Not measured yet:",
    }
    groups: dict[str, list[str]] = {heads[group]: [] for group in heads}
    for table, claim in [(one, claim) for one in TABLES for claim in one.claims]:
        verdicts_found = {verdict for _, verdict in _differences(results, claim).values()}
        worst = next((one for one in WORST_FIRST if one in verdicts_found), "open")
        groups[heads["yes" if worst == "none seen" else worst]].append(_summary_line(results, table, claim))
    groups["Experiments of ours, which the paper does not have:"] = [
        _summary_line(results, table, claim) for table in TABLES for claim in table.experiments
    ]
    return "\n\n".join(f"{head}\n\n" + "\n".join(lines) for head, lines in groups.items() if lines)


def _summary_line(results: dict, table: Table, claim: Claim) -> str:
    """A claim with its differences and verdicts."""
    found = {one: pair for one, pair in _differences(results, claim).items() if pair[0] != "–"}
    details = ", ".join(f"{TITLES[one]} {text} ({verdict})" for one, (text, verdict) in found.items())
    return f"- Table {table.number}, {claim.text}" + (f": {details.replace('one seed: ', '')}" if found else "")


def _table(results: dict, table: Table) -> str:
    dropped = any(row.texts for row in table.rows)
    heads = ["", "seeds", *MEASURES.values(), *([TITLES[DROPPED]] if dropped else [])]
    heads += ["paper: IR@1", "TR@1", "COCO CIDEr", "NoCaps CIDEr", *(["dropped"] if dropped else [])]
    lines = []
    for row in table.rows:
        cells = [row.title, str(len(values(results, row.stage, "t2i_r1")) or "not run yet")]
        cells += [mean_and_deviation(values(results, row.stage, measure).values()) for measure in MEASURES]
        cells += [mean_and_deviation(values(results, row.texts, DROPPED).values())] if dropped else []
        cells += [f"{number:.1f}" for number in row.paper] or ["–"] * 4
        cells += [f"{row.paper_dropped}%" if row.texts else "–"] if dropped else []
        lines.append(cells)
    return markdown_table(heads, lines)


def _claims(results: dict, head: str, claims: tuple[Claim, ...]) -> str:
    """Tables of the claims: one for each set of measures."""
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for claim in claims:
        found = _differences(results, claim)
        cells = [claim.text, *(f"{text} ({verdict})" if text != "–" else text for text, verdict in found.values())]
        tables.setdefault(tuple(found), []).append(cells)
    return "\n\n".join(
        markdown_table([head, *(TITLES[one] for one in measures)], lines) for measures, lines in tables.items()
    )


def _quality(results: dict) -> str:
    lines = [
        [title, *(mean_and_deviation(values(results, stage, measure).values()) for measure in QUALITY)]
        for stage, title in MODELS.items()
    ]
    return markdown_table(["captioner and filter", *QUALITY.values()], lines)


def plot(results: dict) -> str:
    """An SVG with one panel per measure: one row per pretraining, one dot per seed, and a line at the mean."""
    titles: dict[str, str] = {}
    for table in TABLES:
        for row in table.rows:
            titles.setdefault(row.stage, row.title if table.number in (1, 12, 13) else f"{row.title} (T{table.number})")
    rows = [(stage, title) for stage, title in titles.items() if values(results, stage, "t2i_r1")]
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ablations",
        "font.family": "sans-serif",
        "font.size": 10,
        **ink,
    }
    with pyplot.rc_context(settings):
        figure, panels = pyplot.subplots(1, len(MEASURES), figsize=(13, 1 + 0.32 * len(rows)), sharey=True)
        for panel, (measure, title) in zip(panels, MEASURES.items(), strict=True):
            for place, (stage, _) in enumerate(rows):
                numbers = [100 * value for value in values(results, stage, measure).values()]
                panel.plot(numbers, [place] * len(numbers), "o", markersize=4, alpha=0.6, color="#4c8bd6")
                panel.plot([mean(numbers)] * 2, [place - 0.3, place + 0.3], linewidth=2, color="#d6724c")
            panel.set_title(title if measure == "CIDEr" else f"{title}, %", loc="left")
            panel.grid(axis="x", color=INK, alpha=0.25, linewidth=0.6)
            panel.spines[["top", "right", "left"]].set_visible(False)
        panels[0].set_yticks(range(len(rows)), [title for _, title in rows])
        panels[0].invert_yaxis()
        figure.tight_layout()
        data = io.StringIO()
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return data.getvalue()
