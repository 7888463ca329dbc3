"""What the archive says of runs to come: loss curves, speed, the cost of layers, and sweeps."""

from reuse_algos.predict.backtest import Backtest, BacktestSummary, backtest, summarise
from reuse_algos.predict.cost.communication import exchange_seconds, strong_scaling
from reuse_algos.predict.cost.layers import DEVICES, Device, Layer, layers_of, percent_of_peak, shares, step_seconds
from reuse_algos.predict.cost.speed import SpeedModel, fit_speed
from reuse_algos.predict.forecast import EndForecast, forecast_run
from reuse_algos.predict.history import History, histories, history_of
from reuse_algos.predict.loss_curve import LossCurve, fit_loss_curve
from reuse_algos.predict.sizes import SizedRun, leave_one_size_out, predict_size
from reuse_algos.predict.sweeps.attack_strength import Transition, find_transition
from reuse_algos.predict.sweeps.batch_size import BatchSweep, Trial, batch_sweep, effective_rate, noise_scale
from reuse_algos.predict.sweeps.best_values import Attempt, BestValue, best_values

__all__ = [
    "DEVICES",
    "Attempt",
    "Backtest",
    "BacktestSummary",
    "BatchSweep",
    "BestValue",
    "Device",
    "EndForecast",
    "History",
    "Layer",
    "LossCurve",
    "SizedRun",
    "SpeedModel",
    "Transition",
    "Trial",
    "backtest",
    "batch_sweep",
    "best_values",
    "effective_rate",
    "exchange_seconds",
    "find_transition",
    "fit_loss_curve",
    "fit_speed",
    "forecast_run",
    "histories",
    "history_of",
    "layers_of",
    "leave_one_size_out",
    "noise_scale",
    "percent_of_peak",
    "predict_size",
    "shares",
    "step_seconds",
    "strong_scaling",
    "summarise",
]
