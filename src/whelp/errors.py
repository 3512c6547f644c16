"""Every error a user can meet: each message says what was given, what was expected and what to do."""

from __future__ import annotations


class WhelpError(Exception):
    """Base of all errors that are the user's to read; the command line prints them without a traceback."""

    exit_code = 1


class ConfigError(WhelpError):
    """A recipe, an override or a flag that cannot be used."""

    exit_code = 2


class DataError(WhelpError):
    """A data file that cannot be used; the message names the file and the line."""

    exit_code = 2


class ModelError(WhelpError):
    """A model that cannot be found, fetched, verified or cut into trunk and branch."""


class RunError(WhelpError):
    """A run directory that is locked, damaged, or does not fit what was asked."""


class TrainingError(WhelpError):
    """Training that cannot go on: a NaN, a reward model that must not be trusted."""


class Interrupted(WhelpError):
    """The user stopped the run; what was done is saved."""

    exit_code = 130
