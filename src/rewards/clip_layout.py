"""The weights of a CLIP of transformers under the names that open_clip uses, so that one network reads both."""

import re

import torch
from torch import Tensor

MARK = "text_model.embeddings.token_embedding.weight"  # a name that only transformers' layout has
NAMES = (  # in the order in which they are replaced
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.([qkv])_proj\.(weight|bias)$", r".attn.in_proj_\2.\1"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
TRANSPOSED = ("text_projection", "visual.proj")
UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # 0, 1, 2, ... in old files


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a CLIPModel as one of open_clip: other names, one weight for query, key and value.

    Another state dict is returned as it is; a name that is not known is kept, so that loading refuses it.
    """
    if MARK not in state:
        return state
    renamed, parts = {}, {}
    for name, value in state.items():
        if name in UNUSED:
            continue
        for pattern, other in NAMES:
            name = re.sub(pattern, other, name)
        if re.search(r"\.in_proj_(weight|bias)\.[qkv]$", name):
            parts.setdefault(name[:-2], {})[name[-1]] = value
        else:
            renamed[name] = value.T if name in TRANSPOSED else value
    for name, of in parts.items():
        renamed[name] = torch.cat([of[part] for part in "qkv" if part in of])
    return renamed
