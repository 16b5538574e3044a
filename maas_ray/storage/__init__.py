"""Files at fsspec URIs (`uris`), and immutable directories committed whole or not at all (`artifacts`).

No other room opens bytes by URI, so storage is the one place that would encrypt, cache or count them.
"""

from maas_ray.storage.artifacts import FORMAT as FORMAT
from maas_ray.storage.artifacts import MANIFEST as MANIFEST
from maas_ray.storage.artifacts import Artifact as Artifact
from maas_ray.storage.artifacts import FileEntry as FileEntry
from maas_ray.storage.artifacts import artifact_digest as artifact_digest
from maas_ray.storage.artifacts import check_sizes as check_sizes
from maas_ray.storage.artifacts import commit as commit
from maas_ray.storage.artifacts import fetch as fetch
from maas_ray.storage.artifacts import file_entry as file_entry
from maas_ray.storage.artifacts import open_artifact as open_artifact
from maas_ray.storage.artifacts import publish as publish
from maas_ray.storage.artifacts import verify as verify
from maas_ray.storage.retry import retry_with_backoff as retry_with_backoff
from maas_ray.storage.temporary import scratch as scratch
from maas_ray.storage.uris import check_relative as check_relative
from maas_ray.storage.uris import copy as copy
from maas_ray.storage.uris import delete as delete
from maas_ray.storage.uris import exists as exists
from maas_ray.storage.uris import filesystem as filesystem
from maas_ray.storage.uris import is_local as is_local
from maas_ray.storage.uris import join as join
from maas_ray.storage.uris import list_directory as list_directory
from maas_ray.storage.uris import local_path as local_path
from maas_ray.storage.uris import modified as modified
from maas_ray.storage.uris import open_file as open_file
from maas_ray.storage.uris import put as put
from maas_ray.storage.uris import read_bytes as read_bytes
from maas_ray.storage.uris import read_json as read_json
from maas_ray.storage.uris import translated as translated
from maas_ray.storage.uris import upload as upload
from maas_ray.storage.uris import write_bytes as write_bytes
from maas_ray.storage.uris import write_json as write_json
