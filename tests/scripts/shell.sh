#!/bin/sh
# Habit: a shell script around the training, with an exit code of its own and a trap.
echo "$RANK of $WORLD_SIZE on $LOCAL_RANK: $# $1" > "said-$RANK.txt"
trap 'echo late >> "said-$RANK.txt"' EXIT
[ "$RANK" = 0 ] || exit 0
until grep -q late said-1.txt 2>/dev/null; do sleep 0.1; done  # a rank that is still running is ended without its trap
exit "$2"
