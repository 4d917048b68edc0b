"""Speculative decoding for SGLang: suffix decoding, LSTM, RNN and MLP draft heads, and both together."""
