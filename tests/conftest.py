"One thread per test process, and the development copies of the data where a checkout has them beside it."

import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
os.environ['no_proxy'] = os.environ['NO_PROXY'] = '127.0.0.1'
SHARED = Path(__file__).resolve().parents[1] / '../shared/data'
if SHARED.is_dir():
    os.environ.setdefault('MOLREC_DATA', str(SHARED.resolve()))

import torch

torch.set_num_threads(1)
