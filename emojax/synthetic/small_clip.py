"""A new, small CLIP to be trained: a tokenizer of the captions' words, random weights, settings.

`training.contrastive` trains it; the one that ships with emojax was made so.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flax import nnx
from transformers import CLIPConfig, CLIPTokenizer

from emojax.data.clip_encoder import CLIP_MEAN, CLIP_STD, ClipEncoder, HfTokenizer
from emojax.data.clip_folder import TRAINED_ON
from emojax.models.clip import Clip, ClipConfig
from emojax.models.preprocess import Preprocess

START = "<|startoftext|>"
END = "<|endoftext|>"


class SmallClip(NamedTuple):
    """A small CLIP and what `weights.save_clip` writes beside its weights.

    Attributes:
      encoder: network, preprocessing and tokenizer, ready for use.
      hf_config: its settings for Hugging Face.
      tokenizer: its tokenizer for Hugging Face.
    """

    encoder: ClipEncoder
    hf_config: CLIPConfig
    tokenizer: CLIPTokenizer


def small_clip(texts: Sequence[str], seed: int) -> SmallClip:
    """0.8 M random parameters for images of 48×48 and captions like `texts`.

    Small enough to train on a laptop. Patches of 12×12 pixels make 16 tokens; patches of 8 see
    little more here and take twice the time.
    """
    tokenizer = train_tokenizer(texts)
    words = len(tokenizer)
    special = {
        "vocab_size": words,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    text = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 12,
    }
    hf_config = CLIPConfig(text_config=text | special, vision_config=vision, projection_dim=64)
    setattr(hf_config, TRAINED_ON, "rendered faces")  # it is trained on nothing else
    config = ClipConfig.from_hf(hf_config.to_dict())
    # Jitted: drawing the weights one array at a time takes ten times as long.
    model = nnx.jit(lambda: Clip(config, rngs=nnx.Rngs(seed)))()
    preprocess = Preprocess(resize=48, crop=(48, 48), mean=CLIP_MEAN, std=CLIP_STD)
    encoder = ClipEncoder(model, preprocess, HfTokenizer(tokenizer), "new CLIP")
    return SmallClip(encoder, hf_config, tokenizer)


def train_tokenizer(texts: Iterable[str], merges: int = 512) -> CLIPTokenizer:
    """A tokenizer with at most so many merges: any text can be encoded, known words in few tokens.

    The vocabulary is laid out as OpenAI's: 256 bytes, the same at the end of words, merges, start
    and end token.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    # CLIP's own rules of normalization and of splitting words, taken from a tokenizer without
    # merges.
    plain = CLIPTokenizer(vocab=_numbered([*pieces, START, END]), merges=[]).backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = plain.normalizer
    learner.pre_tokenizer = plain.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=len(pieces) + merges,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    pairs = [tuple(pair) for pair in learned["merges"]][:merges]
    vocabulary = [*pieces, *("".join(pair) for pair in pairs), START, END]
    return CLIPTokenizer(
        vocab=_numbered(vocabulary),
        merges=pairs,  # pyright: ignore[reportArgumentType] - tokenizers takes pairs
    )


def _numbered(words: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}
