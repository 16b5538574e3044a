"""OpenVINO GenAI: conversion of a model, the engine, its process, adapters, and grammars for JSON schemas."""
