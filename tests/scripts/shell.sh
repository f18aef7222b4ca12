#!/bin/sh
# Habit: a shell script around the training, with an exit code of its own.
echo "$RANK of $WORLD_SIZE on $LOCAL_RANK: $# $1" > "said-$RANK.txt"
trap 'echo late >> "said-$RANK.txt"' EXIT
sleep 0.3
exit "$2"
