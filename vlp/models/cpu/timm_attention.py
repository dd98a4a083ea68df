"""timm's attention by the kernel that is faster on a CPU. Importing timm takes a second, so only its towers do."""

from timm.layers.attention import Attention
from torch import Tensor

from vlp.models.cpu.attention import plain_attention, use_fused_kernel
from vlp.models.precision import product_dtype


class CpuTimmAttention(Attention):
    """timm's attention by two matrix products where they are faster."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        batch, tokens, _ = x.shape
        special = attn_mask is not None or is_causal or self.gate is not None
        if special or use_fused_kernel(x.device, product_dtype(x), tokens, tokens):
            return super().forward(x, attn_mask, is_causal)
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [batch, heads, tokens, head_dim]
        query, key = self.q_norm(query), self.k_norm(key)
        y = plain_attention(query, key, value, None, self.attn_drop.p if self.training else 0.0)
        y = y.transpose(1, 2).flatten(2)  # [batch, tokens, width]
        return self.proj_drop(self.proj(self.norm(y)))
