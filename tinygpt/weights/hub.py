"""Finding weights: a path on this machine, or a name on Hugging Face's hub, which is then fetched."""

from pathlib import Path

from tinygpt.errors import DownloadFailed, InvalidInput, MissingFile, MissingPackage
from tinygpt.storage.safetensors import INDEX, TEMPLATE_FOLDER, TOKENIZER_FILES, WEIGHTS

HUB_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
HUB_NAMES["distilgpt2"] = "distilbert/distilgpt2"


def locate(path_or_name: str | Path) -> Path:
    """The directory or file of weights that is meant: an existing path, or a name on Hugging Face's hub, which is then fetched.

    Names are those in HUB_NAMES, or `owner/name`. Raises FileNotFoundError for anything else, ImportError without the extra `hub`,
    ConnectionError if the hub cannot be reached or has no such model.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    name = str(path_or_name)
    owner, _, rest = name.partition("/")
    if name not in HUB_NAMES and not (owner and rest and "/" not in rest and owner[0] not in ".~" and not Path(owner).exists()):
        rule = f"expected weights on this machine, {', '.join(HUB_NAMES)}, or owner/name on Hugging Face's hub"
        raise MissingFile(f"{name}: no such file or directory, {rule}; check the path")
    return _fetch(HUB_NAMES.get(name, name))


def _fetch(repository: str) -> Path:
    by_hand = f"fetch it where there is a network (hf download {repository} --local-dir FOLDER) and pass the folder's path"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        rule = "huggingface_hub is not installed, expected it for names on the hub"
        raise MissingPackage(f"{repository}: {rule}; pip install 'tinygpt[hub]', or {by_hand}") from error
    try:
        patterns = ["config.json", "model*.safetensors", INDEX, *TOKENIZER_FILES, f"{TEMPLATE_FOLDER}/*.jinja"]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # whatever its HTTP library raises: all of it means that the files did not come
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        rule = "expected the hub to answer; check the name and network"
        raise DownloadFailed(f"{repository}: not fetched ({reason}), {rule}, or {by_hand}") from error


def has_weights(path: Path) -> bool:
    """Whether `path` is a file of weights, or a directory that holds one (or an index of shards)."""
    return path.suffix == ".bin" if path.is_file() else (path / WEIGHTS).is_file() or (path / INDEX).is_file()


def refuse_gguf(path: Path) -> InvalidInput:
    rule = f"expected {WEIGHTS}, because its numbers are packed in blocks of a few bits for other programs"
    return InvalidInput(f"{path}: llama.cpp's format, {rule}; take the repository from which it was made")


def refuse_pickle(path: Path) -> InvalidInput:
    code = (
        f"import torch, safetensors.torch as s; w = torch.load('{path.name}', weights_only=True, map_location='cpu'); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.get('model', w).items()}}, '{WEIGHTS}')"
    )
    rule = f"expected {WEIGHTS}, because reading a pickle runs any code that its author put into it"
    fix = f'if you trust the file, convert it where PyTorch is installed: python -c "{code}"'
    return InvalidInput(f"{path}: pickled weights, {rule}; {fix}")
