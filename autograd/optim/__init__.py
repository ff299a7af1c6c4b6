"""Optimizers over flat buffers, gradient clipping, and learning-rate schedules.

Read adam.py first: AdamW's formula, and what it keeps. flat.py holds what all optimizers share.
"""

from autograd.optim.adam import Adam as Adam
from autograd.optim.adam import AdamW as AdamW
from autograd.optim.adam import AdamWUpdate as AdamWUpdate
from autograd.optim.flat import FlatOptimizer as FlatOptimizer
from autograd.optim.flat import Group as Group
from autograd.optim.flat import SquaredNorm as SquaredNorm
from autograd.optim.flat import bind_to_buffers as bind_to_buffers
from autograd.optim.flat import checked_moment as checked_moment
from autograd.optim.muon import Muon as Muon
from autograd.optim.muon import MuonUpdate as MuonUpdate
from autograd.optim.muon import Orthogonalize as Orthogonalize
from autograd.optim.schedules import warmup_constant as warmup_constant
from autograd.optim.schedules import warmup_cosine as warmup_cosine
from autograd.optim.schedules import warmup_inverse_sqrt as warmup_inverse_sqrt
from autograd.optim.schedules import warmup_stable_decay as warmup_stable_decay
from autograd.optim.sgd import SGD as SGD
from autograd.optim.sgd import SGDUpdate as SGDUpdate
