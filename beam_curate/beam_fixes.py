"""What Beam 2.77 gets wrong and this program cannot do without. Each function says how, and when it can go."""

from apache_beam.runners.portability.fn_api_runner import worker_handlers


def keep_elements_whole() -> None:
    """Stops ``FnApiRunner``'s threaded workers from tearing elements apart.

    With ``--direct_running_mode=multi_threading`` a worker's output is sent every second by a thread of its own
    (``TimeBasedBufferingClosableOutputStream`` in ``runners/worker/data_plane.py``), also while another thread is in
    the middle of encoding an element. What is decoded then is garbage, or never ends. A limit that is not positive
    turns that thread off; what is left is sent by size, between elements, as all other workers do.
    """
    worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = -1
