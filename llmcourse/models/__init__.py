"""Models built from parts; `load_model` gives the one the course is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from llmcourse.data.tokenizer import Tokenizer
    from llmcourse.data.vocabulary import Vocabulary
    from llmcourse.models.llama import Llama


def load_model(
    name: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Llama, Tokenizer]:
    """SmolLM2-135M-Instruct and its tokenizer, or another Llama by folder, GGUF file or hub id.

    `dtype` is float32 unless given. The first call downloads and converts (no network after that).
    Raises CourseError if the checkpoint is not to be had or is not a Llama.
    """
    import torch

    from llmcourse.data.checkpoints import resolve_checkpoint
    from llmcourse.data.tokenizer import Tokenizer
    from llmcourse.models.llama import Llama

    folder = resolve_checkpoint(name)
    model = Llama.from_checkpoint(folder, dtype=dtype or torch.float32, device=device)
    return model, Tokenizer.from_file(folder)


def load_translator(name: str) -> tuple[Any, Vocabulary, Vocabulary, dict[str, Any]]:
    """A translator that the course ships: "lstm", "attentive" or "transformer".

    Returns the model (ready to translate), the English and the Chinese vocabulary, and what is known
    about it: configuration, log of its training, scores, device and date. Raises CourseError for
    another name.
    """
    from llmcourse.data.trained import load_trained
    from llmcourse.data.vocabulary import Vocabulary
    from llmcourse.errors import CourseError
    from llmcourse.models import seq2seq
    from llmcourse.models.transformer import Transformer, TransformerConfig

    kinds: dict[str, tuple[Any, Any]] = {
        "lstm": (seq2seq.LSTMTranslator, seq2seq.LSTMConfig),
        "attentive": (seq2seq.AttentiveLSTMTranslator, seq2seq.LSTMConfig),
        "transformer": (Transformer, TransformerConfig),
    }
    if name not in kinds:
        raise CourseError(f"There is no translator {name!r}; choose one of {', '.join(kinds)}.")
    weights, about = load_trained(f"translate_{name}")
    model_of, config_of = kinds[name]
    model = model_of(config_of(**about["config"]))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"head.weight"}, (missing, unexpected)  # a tied head
    source, target = (
        Vocabulary.from_json(about[f"{side}_vocabulary"]) for side in ("source", "target")
    )
    return model.eval(), source, target, about
