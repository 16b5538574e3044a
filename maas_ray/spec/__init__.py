"""Specs: YAML documents that users write, parsed strictly.

A spec is frozen, rejects unknown fields and is checked as a whole before anything starts. All problems of a file
are reported at once, each with its line, the field, the value and the fix. A spec remembers its file and lines, so
that a problem that only a verb can find is reported in the same way. The meaning of the specs is not known here.
"""

from maas_ray.spec.base import Name as Name
from maas_ray.spec.base import Spec as Spec
from maas_ray.spec.base import digest_of as digest_of
