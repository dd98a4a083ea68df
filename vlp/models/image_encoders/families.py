"""The families of image encoders, and the sizes of the papers' variants."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError
from vlp.models.image_encoders import cct, cvt, cvt_compact, hybrid, pvt, pvt_v2, t2t, timm_tower, vit, vit_lite


@dataclass(frozen=True)
class Family:
    """How a family is built, and the fields of `ImageEncoderConfig` that each variant of its paper sets."""

    build: Callable[[ImageEncoderConfig], nn.Module]
    variants: dict[str, dict[str, Any]]


FAMILIES: dict[str, Family] = {
    "vit": Family(vit.build_vit, vit.VARIANTS),
    "hybrid": Family(hybrid.build_hybrid, hybrid.VARIANTS),
    "vit_lite": Family(vit_lite.build_vit_lite, vit_lite.VARIANTS),
    "cvt_compact": Family(cvt_compact.build_cvt_compact, cvt_compact.VARIANTS),
    "cct": Family(cct.build_cct, cct.VARIANTS),
    "t2t": Family(t2t.build_t2t, t2t.VARIANTS),
    "pvt": Family(pvt.build_pvt, pvt.VARIANTS),
    "pvt_v2": Family(pvt_v2.build_pvt_v2, pvt_v2.VARIANTS),
    "cvt": Family(cvt.build_cvt, cvt.VARIANTS),
}


def build_tower(config: ImageEncoderConfig) -> nn.Module:
    """The tower that a resolved config describes, with new weights.

    Raises:
        UserError: the family is unknown, or its sizes do not fit each other.
    """
    if config.name.startswith(timm_tower.PREFIX):
        return timm_tower.build_timm(config)
    return family_of(config.name).build(config)


def family_of(name: str) -> Family:
    """The family of FAMILY or FAMILY:VARIANT.

    Raises:
        UserError: there is none of this name.
    """
    name = name.partition(":")[0]
    if name not in FAMILIES:
        known = [*FAMILIES, "timm:NAME"]
        raise UserError(f"There is no image encoder {name!r}{_nearest(name, known)}; choose from {', '.join(known)}.")
    return FAMILIES[name]


def resolve(config: ImageEncoderConfig) -> ImageEncoderConfig:
    """The config with a variant's sizes in place of its name: `cct:7/3x1` becomes `cct` with layers: 7 and so on.

    Raises:
        UserError: the family or the variant is unknown, or the config gives other sizes than the variant has.
    """
    name, _, variant = config.name.partition(":")
    if not variant or config.name.startswith(timm_tower.PREFIX):
        return config
    variants = family_of(name).variants
    if variant not in variants:
        raise UserError(
            f"{name} has no variant {variant!r}{_nearest(variant, list(variants))}; choose from {', '.join(variants)}."
        )
    sizes, plain = variants[variant], ImageEncoderConfig()
    for key, value in sizes.items():
        given = getattr(config, key)
        if given not in (getattr(plain, key), value):
            raise UserError(
                f"model.image_encoder.{key} is {given}, but {config.name} has {value}; remove it, or write "
                f"name: {name} and give all sizes."
            )
    return replace(config, name=name, **sizes)


def _nearest(name: str, known: list[str]) -> str:
    """The nearest of the known names, as a question to insert into an error."""
    folded = {one.lower(): one for one in known}  # so that b/16 is nearest to B/16
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)  # variants are short
    return f" (did you mean {folded[found[0]]}?)" if found else ""
