"""What runs inside vLLM's worker processes: a cure for tied embeddings on a CPU, and an end when our process is gone.

How new weights get there is `VllmEngine.update_weights` in `vllm`. vLLM mixes `WorkerExtension` into its worker class
(`worker_extension_cls`). Imports neither vLLM nor torch at the top.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

from selfplay.storage.segments import clear

OWNER_VARIABLE = "SELFPLAY_VLLM_OWNER"
"""Environment variable with the process id of the engine's owner."""
FOLDER_VARIABLE = "SELFPLAY_VLLM_FOLDER"
"""Environment variable with the folder of the engine's temporary files, which the owner removes while it lives."""
SECONDS_BETWEEN_LOOKS = 1.0


class WorkerExtension:
    """Methods that `LLM.collective_rpc` finds on every worker."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Watch the owner from the worker's first moment on, before a model is loaded."""
        owner = int(os.environ.get(OWNER_VARIABLE, "0"))
        if owner and owner != os.getpid():
            threading.Thread(target=_end_without, args=(owner,), daemon=True).start()
        return super().__new__(cls)

    def repack_tied_head(self) -> None:
        """Make an output layer that is tied to the input embedding use the weights just loaded (CPU only).

        The CPU kernels multiply with a packed copy of a weight. Reloading packs each layer anew, but a tied `lm_head`
        has no weights of its own, so that its copy stays the old one (vLLM 0.31).
        """
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)


def _end_without(owner: int) -> None:
    """End this process, and the engine core that started it, once `owner` is not an ancestor any more.

    Without this, vLLM 0.31 outlives a killed owner: its memory stays taken, and its worker polls forever. A core whose owner
    and worker are gone while it starts waits forever for the owner to read its farewell.
    """
    import psutil

    myself = psutil.Process()
    while any(parent.pid == owner for parent in myself.parents()):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for parent in myself.parents():
        if parent.name().startswith("VLLM::EngineCore"):
            parent.kill()
    if folder := os.environ.get(FOLDER_VARIABLE):
        clear(Path(folder))
    os._exit(1)
