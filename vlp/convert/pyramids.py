"""Converting pyramids (PVT, PVT v2, CvT) of timm, of transformers and of the papers' own checkpoints."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from vlp.config_model import ImageEncoderConfig, StageConfig
from vlp.convert.tables import State, Table, count_layers, to_our_names
from vlp.errors import UserError

KINDS = ("pvt", "pvt_v2", "cvt")  # `model_type` in transformers
TIMM_CLASS = "PyramidVisionTransformerV2"
PVT_HEADS = (1, 2, 5, 8)  # of all published PVT and PVT v2 models
CVT_HEAD_WIDTH = 64  # of all published CvT models
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Names:
    """Their names of our modules, with {i} for the number of a stage from 0, {n} from 1, and {layer} for a block.

    Attributes:
        stage: modules of a stage.
        block: the prefix of a block.
        parts: modules of a block that have other names than ours; several are parts of our matrix.
        first, last: modules of the first and of the last stage.
    """

    stage: dict[str, str]
    block: str
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)


OURS = (
    *("norm1", "norm2", "attn.q", "attn.kv", "attn.proj", "attn.sr", "attn.norm", "mlp.fc1", "mlp.fc2", "mlp.dwconv"),
    *(f"attn.proj_{one}" for one in "qkv"),
    *(f"attn.conv_proj_{one}.{kind}" for one in "qkv" for kind in ("conv", "bn")),
)
TIMM = Names(
    {"embed": "stages.{i}.downsample", "norm": "stages.{i}.norm"},
    "stages.{i}.blocks.{layer}",
    first={"embed": "patch_embed"},
)
PUBLISHED_PVT = Names(
    {"embed": "patch_embed{n}", "pos_embed": "pos_embed{n}", "norm": "norm{n}"},
    "block{n}.{layer}",
    {"mlp.dwconv": ("mlp.dwconv.dwconv",)},
    last={"cls_token": "cls_token"},
)
PUBLISHED_CVT = Names(
    {"embed": "stage{i}.patch_embed", "cls_token": "stage{i}.cls_token"},
    "stage{i}.blocks.{layer}",
    last={"norm": "norm"},
)
FEED_FORWARD = {"mlp.fc1": ("mlp.dense1",), "mlp.fc2": ("mlp.dense2",), "mlp.dwconv": ("mlp.dwconv.dwconv",)}
TRANSFORMERS = {
    "pvt": Names(
        {
            "embed.proj": "encoder.patch_embeddings.{i}.projection",
            "embed.norm": "encoder.patch_embeddings.{i}.layer_norm",
            "pos_embed": "encoder.patch_embeddings.{i}.position_embeddings",
            "cls_token": "encoder.patch_embeddings.{i}.cls_token",
        },
        "encoder.block.{i}.{layer}",
        {
            "norm1": ("layer_norm_1",),
            "norm2": ("layer_norm_2",),
            "attn.q": ("attention.self.query",),
            "attn.kv": ("attention.self.key", "attention.self.value"),
            "attn.sr": ("attention.self.sequence_reduction",),
            "attn.norm": ("attention.self.layer_norm",),
            "attn.proj": ("attention.output.dense",),
            **FEED_FORWARD,
        },
        last={"norm": "encoder.layer_norm"},
    ),
    "pvt_v2": Names(
        {
            "embed.proj": "encoder.layers.{i}.patch_embedding.proj",
            "embed.norm": "encoder.layers.{i}.patch_embedding.layer_norm",
            "norm": "encoder.layers.{i}.layer_norm",
        },
        "encoder.layers.{i}.blocks.{layer}",
        {
            "norm1": ("layer_norm_1",),
            "norm2": ("layer_norm_2",),
            "attn.q": ("attention.query",),
            "attn.kv": ("attention.key", "attention.value"),
            "attn.sr": ("attention.spatial_reduction",),
            "attn.norm": ("attention.layer_norm",),
            "attn.proj": ("attention.proj",),
            **FEED_FORWARD,
        },
    ),
    "cvt": Names(
        {
            "embed.proj": "encoder.stages.{i}.embedding.convolution_embeddings.projection",
            "embed.norm": "encoder.stages.{i}.embedding.convolution_embeddings.normalization",
            "cls_token": "encoder.stages.{i}.cls_token",
        },
        "encoder.stages.{i}.layers.{layer}",
        {
            "norm1": ("layernorm_before",),
            "norm2": ("layernorm_after",),
            "attn.proj": ("attention.output.dense",),
            "mlp.fc1": ("intermediate.dense",),
            "mlp.fc2": ("output.dense",),
            **{
                f"attn.conv_proj_{word[0]}.{ours}": (
                    f"attention.attention.convolution_projection_{word}.convolution_projection.{theirs}",
                )
                for word in ("query", "key", "value")
                for ours, theirs in (("conv", "convolution"), ("bn", "normalization"))
            },
            **{
                f"attn.proj_{word[0]}": (f"attention.attention.projection_{word}",)
                for word in ("query", "key", "value")
            },
        },
        last={"norm": "layernorm"},
    ),
}
Tower = tuple[ImageEncoderConfig, State]


def pyramid_from_timm(trunk: Any, weights: State) -> Tower:
    """The settings of one of timm's PVT v2 models, and its weights under our names."""
    heads = [stage.blocks[0].attn.num_heads for stage in trunk.stages]
    return _tower(TIMM, weights, heads, {"norm_eps": trunk.stages[0].norm.eps, "image_size": 224})


def pyramid_from_transformers(facts: dict[str, Any], weights: State) -> Tower:
    """The settings and weights of a PVT, PVT v2 or CvT of `transformers` under our names.

    Args:
        facts: its config.json.

    Raises:
        UserError: it has an activation or a convolution that our network lacks.
    """
    kind = facts["model_type"]
    weights = {name.removeprefix(f"{kind}."): tensor for name, tensor in weights.items()}
    if kind == "cvt":
        if set(facts.get("stride_q", [1])) != {1}:
            raise UserError("The CvT has convolutions of stride 2 for its queries; our network supports stride 1.")
        heads, settings = facts["num_heads"], {"norm_eps": 1e-5, "image_size": 224}
        settings["reductions"] = facts.get("stride_kv", [2] * len(heads))
    else:
        activation = facts.get("hidden_act", "gelu")
        if activation not in ("gelu", "quick_gelu"):
            raise UserError(f"The model has the activation {activation!r}; our network supports gelu and quick_gelu.")
        size = facts.get("image_size", 224)
        settings = {
            "norm_eps": facts.get("layer_norm_eps", 1e-6),
            "image_size": size[0] if isinstance(size, list) else size,
            "activation": activation,
        }
        heads = facts["num_attention_heads"]
    return _tower(TRANSFORMERS[kind], weights, heads, settings)


def pyramid_from_published(weights: State) -> Tower | None:
    """The settings and weights of a checkpoint of the papers' authors under our names; None for other checkpoints."""
    if "patch_embed1.proj.weight" in weights:
        names = PUBLISHED_PVT
        if "norm.weight" in weights:  # PVT has one norm at the end, PVT v2 one in each stage
            names = replace(names, last={**names.last, "norm": "norm"})
        return _tower(names, weights, PVT_HEADS, {"norm_eps": 1e-6, "image_size": 224})
    if "stage0.patch_embed.proj.weight" in weights:
        names = [f"stage{number}.patch_embed.proj.weight" for number in range(len(weights))]
        widths = [len(weights[name]) for name in names if name in weights]
        heads = [max(1, width // CVT_HEAD_WIDTH) for width in widths]
        # The published code has QuickGELU; transformers has the same weights with GELU.
        return _tower(PUBLISHED_CVT, weights, heads, {"norm_eps": 1e-5, "image_size": 224, "activation": "quick_gelu"})
    return None


def _tower(names: Names, weights: State, heads: Any, settings: dict[str, Any]) -> Tower:
    """Rename the weights, and read the settings from their shapes."""
    state, _ = to_our_names(_table(names, weights, len(heads)), weights)
    reductions = settings.pop("reductions", [2] * len(heads))
    if any(".conv_proj_q." in name for name in state):
        name = "cvt"
        _scale_queries(state, heads)
    else:
        name = "pvt_v2" if any(".dwconv." in name for name in state) else "pvt"
    stages = []
    for number, (count, reduction) in enumerate(zip(heads, reductions, strict=True)):
        prefix = f"stages.{number}"
        try:
            width, hidden = (
                len(state[f"{prefix}.{part}"]) for part in ("embed.norm.weight", "blocks.0.mlp.fc1.weight")
            )
        except KeyError as error:
            raise UserError(f"The weights of the image encoder are not complete: {error.args[0]} is missing.") from None
        if name != "cvt":
            kernel = state.get(f"{prefix}.blocks.0.attn.sr.weight")
            reduction = 1 if kernel is None else kernel.shape[-1]
        layers = count_layers(state, f"{prefix}.blocks.")
        stages.append(StageConfig(width, layers, count, hidden, reduction))
    kernel = state["stages.0.embed.proj.weight"].shape[-1]
    patch_size = kernel if name == "pvt" else (kernel + 1) // 2
    if "stages.0.pos_embed" in state:
        settings["image_size"] = patch_size * math.isqrt(state["stages.0.pos_embed"].shape[1])
    pools = f"stages.{len(stages) - 1}.blocks.0.attn.sr.weight" in state
    config = ImageEncoderConfig(
        name=name, patch_size=patch_size, width=stages[-1].width, stages=stages, linear_reduction=pools, **settings
    )
    return config, state


def _table(names: Names, weights: State, stages: int) -> Table:
    """Our names of all modules, with theirs."""
    table: Table = {}
    for i in range(stages):
        groups = [names.stage, names.first if i == 0 else {}, names.last if i == stages - 1 else {}]
        for ours, theirs in {key: value for group in groups for key, value in group.items()}.items():
            for part in (".proj", ".norm") if ours == "embed" else ("",):
                table[f"stages.{i}.{ours}{part}"] = (theirs.format(i=i, n=i + 1) + part,)
        prefix = names.block.format(i=i, n=i + 1, layer="")
        for layer in range(count_layers(weights, prefix)):
            for ours in OURS:
                theirs = names.parts.get(ours, (ours,))
                table[f"stages.{i}.blocks.{layer}.{ours}"] = tuple(f"{prefix}{layer}.{one}" for one in theirs)
                if ours.endswith(".bn"):
                    for one in STATISTICS:
                        table[f"stages.{i}.blocks.{layer}.{ours}.{one}"] = (f"{prefix}{layer}.{theirs[0]}.{one}",)
    return table


def _scale_queries(state: State, heads: Any) -> None:
    """Divide queries by the square root of the number of heads: theirs are scaled by the width of all heads."""
    for name, tensor in state.items():
        if ".attn.proj_q." in name:
            state[name] = tensor * heads[int(name.split(".")[1])] ** -0.5
