"""Vocabularies of encoders and translators: BERT's vocab.txt, T5's spiece.model, and Marian's source.spm, target.spm and vocab.json."""

from pathlib import Path
from reprlib import repr as _short

from tinygpt.data.added_tokens import Added, check_vocabulary
from tinygpt.data.library_tokenizer import LibraryTokenizer
from tinygpt.data.sentence_pieces import SentencePieceTokenizer, read_model
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import Json, read_json, read_text

EXTRA_IDS = 100  # of T5, where its files do not say how many


def load_word_pieces(path: Path, config: dict[str, Json], more: Added) -> Tokenizer:
    """BERT's vocab.txt, a token per line, with the options of tokenizer_config.json; run by Hugging Face's library.

    Text is divided at white space, signs and Chinese characters, in lower case and without accents if do_lower_case (the default) says so;
    then each word is cut into the longest pieces that the vocabulary has, those within a word with ## in front.
    Source: Devlin et al. 2018, arXiv:1810.04805, section 3; Wu et al. 2016, arXiv:1609.08144, section 4.1.
    """
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    vocabulary = {line: id for id, line in enumerate(lines[:-1] if not lines[-1] else lines)}
    unknown = more.roles["unk_token"]
    if unknown not in vocabulary:
        rule = f"expected {unknown} among them, for words that it lacks; this is no vocabulary of word pieces"
        raise InvalidInput(f"{path}: {len(vocabulary)} tokens, {rule}")
    for role in more.roles.values():
        if role in vocabulary:
            more.special.setdefault(role, vocabulary[role])
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    model = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    }
    data: dict[str, Json] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer}
    data |= {"pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None, "model": model}
    data["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    why = "word pieces"
    return LibraryTokenizer(path, data, more.special, more.added, more.late, eos=more.end_among(more.special), why=why)


def load_sentence_pieces(path: Path, config: dict[str, Json], more: Added) -> Tokenizer:
    """T5's spiece.model. Its 100 extra ids follow the model's pieces, <extra_id_0> last, unless tokenizer_config.json says how many."""
    model = read_model(path)
    n_pieces = model.vocab_size()
    named = {text: model.piece_to_id(text) for text in more.roles.values() if model.id_to_piece(model.piece_to_id(text)) == text}
    special = named | more.special
    n_extra = config.get("extra_ids", EXTRA_IDS)
    if type(n_extra) is not int or n_extra < 0:
        raise InvalidInput(f"{path.with_name('tokenizer_config.json')}: extra_ids {_short(n_extra)}, expected a count; restore the file")
    if not any(text.startswith("<extra_id_") for text in special):
        special |= {f"<extra_id_{n}>": n_pieces + n_extra - 1 - n for n in range(n_extra)}
    return SentencePieceTokenizer(model, special, more.added, eos=more.end_among(special), unknown=more.roles["unk_token"])


def load_pair(source: Path, config: dict[str, Json], more: Added) -> Tokenizer:
    """Marian's two models, of which vocab.json numbers the pieces; target_vocab.json those of the second where there are separate ones."""

    def side(path: Path, name: str) -> SentencePieceTokenizer:
        vocab = path.with_name(name)
        for needed in (path, vocab):
            if not needed.is_file():
                rule = "expected source.spm, target.spm and vocab.json of the same model; fetch it"
                raise MissingFile(f"{path.parent}: no {needed.name}, {rule}")
        ids = check_vocabulary(vocab, read_json(vocab), more)
        special = {text: ids[text] for text in more.roles.values() if text in ids} | more.special
        unknown = more.roles["unk_token"]
        if unknown not in ids:
            raise InvalidInput(f"{vocab}: no {unknown}, expected it for pieces that the vocabulary lacks; restore the file")
        return SentencePieceTokenizer(read_model(path), special, more.added, eos=more.end_among(special), unknown=unknown, ids=ids)

    separate = config.get("separate_vocabs") is True
    target = side(source.with_name("target.spm"), "target_vocab.json" if separate else "vocab.json")
    return side(source, "vocab.json").with_target(target)
