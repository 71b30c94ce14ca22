"""Imported once by the server from which the tests fork their ranks: what each of them would do
again.
"""

import gc

from train.config.code_hash import code_hash
from train.config.identity import computing_files

SOURCES = [path.read_bytes() for path in computing_files()]
for own in ({"train"}, {"train", "tests"}):
    code_hash(SOURCES, own)

gc.collect()
gc.freeze()  # no collection of a rank looks at what was imported here
