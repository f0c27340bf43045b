"""Errors that the user can mend; the command prints them as one line and exits with status 2."""

from collections.abc import Iterable

# What users of other tools write, by what it is called here: names of settings, commands and data sets.
HABITS = {
    **dict.fromkeys(("batch", "bs", "b", "train_batch_size", "per_device_train_batch_size"), "batch_size"),
    **dict.fromkeys(("accumulate", "update_freq", "grad_accum", "grad_accum_steps"), "gradient_accumulation"),
    **dict.fromkeys(("n_epoch", "n_epochs", "num_epochs", "num_train_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("imgsz", "img_size", "img", "input_size", "size", "resolution"), "data.image_size"),
    **dict.fromkeys(("lr", "lr0", "base_lr", "lr_max", "max_lr", "learning_rate"), "optimizer.lr"),
    **dict.fromkeys(("lrf", "lr_min"), "optimizer.min_lr"),
    **dict.fromkeys(("wd", "decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("opt", "optimizer", "opt_func"), "optimizer.name"),
    **dict.fromkeys(("sched", "cos_lr", "lr_scheduler"), "optimizer.schedule"),
    **dict.fromkeys(("warmup", "warmup_steps"), "optimizer.warmup_epochs"),
    **dict.fromkeys(("clip_grad", "max_grad_norm"), "optimizer.clip_norm"),
    **dict.fromkeys(("model", "arch", "a", "network", "backbone"), "model.name"),
    **dict.fromkeys(("pretrained", "checkpoint", "initial_checkpoint"), "model.weights"),
    **dict.fromkeys(("drop_path", "drop_path_rate", "dropout", "drop"), "model.stochastic_depth"),
    **dict.fromkeys(("in_chans", "channels", "ch"), "model.in_channels"),
    **dict.fromkeys(("data", "dataset", "data_set", "source"), "data.root data.name"),
    **dict.fromkeys(("data_dir", "data_path", "train_dir", "folder", "path"), "data.root"),
    **dict.fromkeys(("num_workers", "j", "n_jobs"), "data.workers"),
    **dict.fromkeys(("augment", "aa", "auto_augment"), "augment.policy"),
    **dict.fromkeys(("reprob", "erasing"), "augment.random_erasing"),
    **dict.fromkeys(("fliplr", "hflip"), "augment.flip"),
    **dict.fromkeys(("model_ema", "ema", "model_ema_decay"), "ema_decay"),
    "smoothing": "label_smoothing",
    **dict.fromkeys(("amp", "half", "fp16", "bf16", "use_amp", "mixed_precision"), "precision"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "no_cuda"), "device"),
    **dict.fromkeys(("project", "output_dir", "save_dir", "out"), "output"),
    **dict.fromkeys(("experiment", "exp_name", "run_name"), "name"),
    **dict.fromkeys(("early_stopping", "early_stop"), "patience"),
    **dict.fromkeys(("nc", "nb_classes", "n_out", "n_classes"), "num_classes"),
    **dict.fromkeys(("val", "test", "eval", "validate"), "evaluate"),
    **dict.fromkeys(("fit", "learn"), "train"),
    "finetune": "train model.weights",
    "check": "datasets",
    **dict.fromkeys(("infer", "inference", "classify"), "predict"),
    **dict.fromkeys(("deploy", "server", "app", "api"), "serve"),
    **dict.fromkeys(("checks", "doctor", "version"), "env"),
    "c10": "cifar10",
    "c100": "cifar100",
}


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one or two lines."""


class SettingsError(UserError):
    """A setting that does not exist, or a value out of its bounds."""


class DataError(UserError):
    """Images or a data set that cannot be used as they are."""


class CheckpointError(UserError):
    """A checkpoint that is missing, incomplete, or made for something else."""


def reason(error: object) -> str:
    """The first line of what an error says, without its number or the file's name."""
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a sentence that names what was meant by ``name``: by `HABITS`, as the last component of a dotted name,
    or by its spelling. Where nothing is close, ``otherwise``, or all of ``known``."""
    import difflib

    known = list(known)
    by_word: dict[str, list[str]] = {}
    for full in known:
        for word in {_plain(full), _plain(full).rpartition(".")[2]}:
            by_word.setdefault(word, []).append(full)
    word = _plain(name)
    last = word.rpartition(".")[2]
    meant = HABITS.get(word, HABITS.get(last, "")).split()
    close = [full for target in meant for full in by_word.get(target, ())]
    # create_model knows model.weights as weights
    close = close or [full for target in meant for full in by_word.get(target.rpartition(".")[2], ())]
    close = close or by_word.get(word, []) or by_word.get(last, [])
    if not close:
        words = difflib.get_close_matches(word, by_word, n=3)
        close = [full for match in words for full in by_word[match]]
    if close:
        return f"did you mean {' or '.join(list(dict.fromkeys(close))[:3])}?"
    return otherwise or f"known: {', '.join(known)}"


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()
