"""W&B's logger as recipes build it."""

from __future__ import annotations

from composer.loggers import WandBLogger


class RecipeWandBLogger(WandBLogger):
    """Composer's W&B logger, which has no checkpoint to offer while W&B is offline or disabled.

    With ``autoresume`` the Trainer asks every logger for a checkpoint and goes on where it gets ``FileNotFoundError``.
    Composer's own logger raises another error where it has no entity, and W&B knows one only when it is online.
    """

    def download_file(
        self, remote_file_name: str, destination: str, overwrite: bool = False, progress_bar: bool = True
    ) -> None:
        """Fetch a file that an earlier run has uploaded.

        Raises:
            FileNotFoundError: W&B has no such file, or is not online.
        """
        if not self.entity or not self.project:
            raise FileNotFoundError(f"W&B is not online, so {remote_file_name} cannot be fetched from it")
        super().download_file(remote_file_name, destination, overwrite, progress_bar)
