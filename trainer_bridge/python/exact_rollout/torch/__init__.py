"""PyTorch's side of the contract; needs torch.

    match_contract   sets the switches under which a stock trainer computes the worker's bits, and reports what is wrong
    token_logprobs   log-probabilities of chosen tokens from logits, in the worker's bits
    doctor           where a trainer's bits leave the contract: the first operation, how far, and the likely cause
    pad_right, pack  batches of sequences that keep the bits
    ops              the forward operations of the contract with gradients, for trainers that can't use stock ones
    qwen3            a small Qwen3 over those operations
"""
from .batches import Packed, pack, pad_right
from .contract import ContractReport, Finding, match_contract, may_split_keys
from .doctor import Diagnosis, Difference, doctor
from .logprobs import token_logprobs

__all__ = ["ContractReport", "Diagnosis", "Difference", "Finding", "Packed", "doctor", "match_contract",
           "may_split_keys", "pack", "pad_right", "token_logprobs"]
