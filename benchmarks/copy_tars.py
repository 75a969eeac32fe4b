"""A plain copy of WebDataset tars, read and written with webdataset itself. SOURCE OUTPUT"""

import os
import sys
from pathlib import Path

import webdataset

IMAGES_PER_TAR = 1000


def main(source: str, output: str) -> None:
    os.makedirs(output, exist_ok=True)
    tars = [str(tar) for tar in sorted(Path(source).glob("*.tar"))]
    with webdataset.ShardWriter(f"{output}/%06d.tar", maxcount=IMAGES_PER_TAR, maxsize=1 << 40, verbose=0) as writer:
        for sample in webdataset.WebDataset(tars, shardshuffle=False):
            members = {name: value for name, value in sample.items() if not name.startswith("__")}
            writer.write({"__key__": sample["__key__"], **members})


if __name__ == "__main__":
    main(*sys.argv[1:])
