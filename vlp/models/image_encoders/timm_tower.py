"""Any timm image model as a tower: convolutional, windowed, or a transformer without a class token."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlp.config_model import ImageEncoderConfig
from vlp.errors import UserError

PREFIX = "timm:"


class TimmTower(nn.Module):
    """A timm model's features as tokens, with its pooled feature first, where BLIP has the class token."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk: Any = trunk
        self.width: int = self.trunk.num_features
        self.positions: dict[str, int] = {}  # timm's weights keep their size

    def forward(self, images: Tensor) -> Tensor:
        """[batch, 3, size, size] -> [batch, 1 + places, width]."""
        features = self.trunk.forward_features(images)
        summary = self.trunk.forward_head(features, pre_logits=True)  # [batch, width]
        if features.ndim == 4 and features.shape[1] == summary.shape[1]:
            features = features.permute(0, 2, 3, 1)  # convolutional models put channels first
        return torch.cat([summary[:, None], features.flatten(1, -2)], dim=1)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Recompute stages in the backward pass.

        Raises:
            UserError: timm's model cannot.
        """
        try:
            self.trunk.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError):
            raise UserError(
                f"activation_checkpointing: timm's {type(self.trunk).__name__} cannot recompute activations; set false."
            ) from None


def build_timm(config: ImageEncoderConfig) -> TimmTower:
    """The model "timm:NAME" with new weights. timm defines its shape, and `config.width` must agree.

    Raises:
        UserError: timm has no such model, or its width differs from `config.width`.
    """
    tower = TimmTower(create_trunk(config.name, config.image_size, drop_path_rate=config.drop_path))
    if tower.trunk.num_features != config.width:
        raise UserError(f"model.image_encoder.width is {config.width}; {config.name} has {tower.trunk.num_features}.")
    return tower


def create_trunk(name: str, image_size: int = 0, pretrained: bool = False, **settings: Any) -> nn.Module:
    """The model "timm:NAME" without its classifier.

    Args:
        image_size: in pixels, for models that depend on it; 0 keeps the model's default.

    Raises:
        UserError: timm has no such model, cannot fetch its weights, or pools to another width than its tokens have.
    """
    import timm  # takes a second, and other towers do without it

    name = name.removeprefix(PREFIX)
    if image_size:
        settings["img_size"] = image_size
    try:
        trunk = _create(timm.create_model, name, {"pretrained": pretrained, "num_classes": 0, **settings})
    except (RuntimeError, OSError, ValueError) as error:
        if timm.is_model(name) or ":" in name:  # such as hf-hub:NAME
            raise UserError(f"timm cannot give the model {name}: {str(error).splitlines()[0]}.") from None
        known = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f" (did you mean {known[0]}?)" if known else ""
        raise UserError(f"There is no timm model {name}{hint}; `timm.list_models()` lists them.") from None
    if getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features:
        raise UserError(f"timm's {name} pools to {trunk.head_hidden_size} from {trunk.num_features}; choose another.")
    return trunk


def _create(create: Callable[..., nn.Module], name: str, settings: dict[str, Any]) -> nn.Module:
    """timm's model, without the settings that its class does not have.

    Convolutional models take any image size and have no `img_size`; some models have no drop path.

    Raises:
        UserError: drop path is wanted, and the model has none.
    """
    for left_out in ((), ("img_size",), ("drop_path_rate",), ("img_size", "drop_path_rate")):
        if "drop_path_rate" in left_out and settings.get("drop_path_rate"):
            raise UserError(f"timm's {name} has no drop path; leave model.image_encoder.drop_path out.")
        try:
            return create(name, **{key: value for key, value in settings.items() if key not in left_out})
        except TypeError as error:
            refused = error
    raise refused
