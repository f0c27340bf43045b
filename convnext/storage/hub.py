"""Models to and from the Hugging Face Hub, by `huggingface_hub`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from convnext.errors import SettingsError, UserError, reason

_LOG_IN = "log in by hf auth login, or set HF_TOKEN"


def check_push(repository: str) -> None:
    """Refuse, with a SettingsError, a repository's name that cannot be, or to push without a token."""
    _check_name(repository)
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise SettingsError(f"to push to {repository} takes a token of the Hugging Face Hub: {_LOG_IN}")


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Make a folder's files those of a model on the Hub; returns the URL of the commit.

    Args:
        folder: with no folders in it.
        repository: ``owner/name``, which is made if it is not there.
        private: whether a repository that is made is seen by its owner alone.

    Raises:
        UserError: no token, no network, or a repository of somebody else.
    """
    check_push(repository)
    from huggingface_hub import HfApi

    with _explained(f"{folder} is written, but cannot be pushed to {repository}"):
        api = HfApi(library_name="convnext")
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model from convnext"))


def fetch_model(repository: str) -> Path:
    """The folder with the files of a model on the Hub that `push` put there, in the Hub's own cache.

    Raises:
        UserError: no such model, or one of another library; no network; `huggingface_hub` is not installed.
    """
    _check_name(repository)
    from huggingface_hub import snapshot_download

    with _explained(f"cannot fetch the model {repository}"):
        folder = Path(snapshot_download(repository, allow_patterns=["*.json", "model.safetensors"]))
    if not (folder / "model.json").is_file():
        raise UserError(f"{repository} has no model.json: it was not written by convnext export --format hub")
    return folder


def _check_name(repository: str) -> None:
    if find_spec("huggingface_hub") is None:
        raise SettingsError("the Hub's models need huggingface_hub: pip install 'convnext[hub]'")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise SettingsError(f"{repository!r} is no repository's name: {reason(error)}") from None
    if "/" not in repository:
        raise SettingsError(f"{repository!r} is no repository's name: give owner/name")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        advice = {
            401: f"the token is refused, or there is none: {_LOG_IN}",
            403: "the token may not write there: it is for reading alone, or the repository is of somebody else",
            404: f"there is none, or it is private: check the name, or {_LOG_IN}",
        }
        status = error.response.status_code
        raise UserError(f"{what}: {advice.get(status, f'the Hub answers {status}: {reason(error)}')}") from None
    except Exception as error:  # of the network: which library's depends on the version of huggingface_hub
        raise UserError(f"{what}: {reason(str(error))}; check the network (and HF_HUB_OFFLINE)") from None
