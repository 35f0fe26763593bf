"""How fast a model runs on this machine: measuring, no printing.

`processes` times whole processes from outside, which is what a user waits for; `settled` the rates of a
loaded model that is warm; `peers` does both to transformers and llama.cpp. `runner` puts them together into
the `Report` of `report`; `machine` names the machine and watches what else runs on it.
"""
