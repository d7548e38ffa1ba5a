# SPDX-License-Identifier: Apache-2.0
# The runs of test/tools/model.sh: name | model | what is to be found | flags of spin | of the compiler | of pan.
# ok: searched to the end, nothing found. Others: S1, S2, S3, S4, END as in README.md; cycle: a fair run that never gets there.
SAFE="-O1 -DSAFETY -DNOFAIR"
FIND="-O0 -DSAFETY -DNOFAIR"
LIVE="-O1 -DNOREDUCE -DNFAIR=3"

runs() {
	cat <<END
refs-no-fault-owner      | safety | ok  | -DNF=4 -DSTART_OWNER | $SAFE |
refs-no-fault-create     | safety | ok  | -DNF=3 -DSTART_CREATE -DSET_ERR | $SAFE |
refs-cuts-owner          | safety | ok  | -DNF=3 -DSTART_OWNER -DNCUT=2 | $SAFE |
refs-cut-create          | safety | ok  | -DNF=3 -DSTART_CREATE -DNCUT=1 | $SAFE |
refs-crash-owner         | safety | ok  | -DNF=3 -DSTART_OWNER -DNCRASH=2 -DNRESTART=2 -DOWNER_CRASH | $SAFE |
refs-crash-create        | safety | ok  | -DNF=3 -DSTART_CREATE -DNCRASH=1 -DNRESTART=1 -DOWNER_CRASH | $SAFE |
refs-any-order           | safety | ok  | -DNF=3 -DSTART_OWNER -DANY_ORDER -DNREPEAT=2 | $SAFE |
mutant-no-pin            | safety | S4  | -DNF=3 -DSTART_OWNER -DMUTANT_NO_PIN | $FIND | -m10000 -w20
mutant-accept-at-once    | safety | S4  | -DNF=3 -DSTART_OWNER -DMUTANT_ACCEPT_AT_ONCE | $FIND | -m10000 -w20
mutant-reclaim-first     | safety | S1  | -DNF=3 -DSTART_OWNER -DNCUT=1 -DMUTANT_RECLAIM_FIRST | $FIND | -m10000 -w20
mutant-unpinned-read     | safety | S1  | -DNF=3 -DSTART_OWNER -DMUTANT_UNPINNED_READ | $FIND | -m10000 -w20
mutant-old-session       | safety | END | -DNF=3 -DSTART_OWNER -DNCUT=1 -DMUTANT_OLD_SESSION | $FIND | -m10000 -w20
mutant-no-generation     | safety | S2  | -DNF=3 -DSTART_OWNER -DNCUT=1 -DMUTANT_NO_GENERATION | $FIND | -m10000 -w20
mutant-never-suspected   | safety | END | -DNF=3 -DSTART_OWNER -DNCRASH=1 -DMUTANT_NEVER_SUSPECTED | $FIND | -m10000 -w20
mutant-survives-reconnect| safety | S2  | -DNF=3 -DSTART_OWNER -DNCUT=1 -DMUTANT_SURVIVES_RECONNECT | $FIND | -m10000 -w20
mutant-early-up          | safety | S2  | -DNF=3 -DSTART_OWNER -DNCUT=1 -DMUTANT_EARLY_UP | $FIND | -m10000 -w20
mutant-dead-pins         | safety | END | -DNF=3 -DSTART_OWNER -DNCUT=1 -DMUTANT_DEAD_PINS | $FIND | -m10000 -w20
mutant-no-early          | safety | S4  | -DNF=3 -DSTART_CREATE -DNO_TIMEOUT -DMUTANT_NO_EARLY | $FIND | -m10000 -w20
mutant-no-husk           | safety | S2  | -DNF=3 -DSTART_CREATE -DMUTANT_NO_HUSK | $FIND | -m10000 -w20
mutant-no-tombstone      | safety | END | -DNF=3 -DSTART_OWNER -DANY_ORDER -DNREPEAT=1 -DMUTANT_NO_TOMBSTONE | $FIND | -m10000 -w20
mutant-counter           | safety | S2  | -DNF=3 -DSTART_OWNER -DNREPEAT=1 -DMUTANT_COUNTER | $FIND | -m10000 -w20
mutant-refused-no-delete | safety | END | -DNF=3 -DSTART_CREATE -DNREPEAT=1 -DNCUT=1 -DMUTANT_NO_DELETE_AFTER_REFUSAL | $FIND | -m10000 -w20
live-no-fault-owner      | liveness | ok    | -DNF=3 -DSTART_OWNER | $LIVE | -a -f -m200000 -w20
live-no-fault-create     | liveness | ok    | -DNF=2 -DSTART_CREATE | $LIVE | -a -f -m200000 -w20
live-crashes             | liveness | ok    | -DNF=2 -DSTART_OWNER -DCRASHES | $LIVE | -a -f -m200000 -w20
control-no-fairness      | liveness | cycle | -DNF=2 -DSTART_OWNER | $LIVE | -a -m200000 -w20
live-mutant-suspected    | liveness | cycle | -DNF=2 -DSTART_OWNER -DCRASHES -DMUTANT_NEVER_SUSPECTED | $LIVE | -a -f -m200000 -w20
live-mutant-dead-pins    | liveness | cycle | -DNF=2 -DSTART_OWNER -DCRASHES -DMUTANT_DEAD_PINS | $LIVE | -a -f -m200000 -w20
live-mutant-no-answer    | liveness | cycle | -DNF=2 -DMUTANT_NO_ANSWER | $LIVE | -a -f -m200000 -w20
live-mutant-no-settle    | liveness | cycle | -DNF=2 -DSTART_OWNER -DMUTANT_NO_SETTLE | $LIVE | -a -f -m200000 -w20
live-mutant-asking       | liveness | cycle | -DNF=2 -DCRASHES -DMUTANT_ASKING_FORGOTTEN | $LIVE | -a -f -m200000 -w20
credits                  | credits | ok    | | $LIVE | -a -f -m200000 -w20
credits-more-than-class  | credits | ok    | -DCREDITS=5 -DCLASS=4 | $LIVE | -a -f -m200000 -w20
credits-one-buffer       | credits | q_len | -DCREDIT_BUFS=1 | $LIVE | -a -f -m200000 -w20
credits-mutant-costs     | credits | cycle | -DMUTANT_RETURN_COSTS | $LIVE | -a -f -m200000 -w20
credits-mutant-held      | credits | cycle | -DMUTANT_HELD_UNTIL_ANSWERED | $LIVE | -a -f -m200000 -w20
future                   | future  | ok    | | $LIVE | -a -f -m200000 -w20
future-mutant-quarantine | future  | landing     | -DMUTANT_NO_QUARANTINE | $LIVE | -a -f -m200000 -w20
future-mutant-claim      | future  | completions | -DMUTANT_NO_CLAIM | $LIVE | -a -f -m200000 -w20
future-mutant-generation | future  | landing     | -DMUTANT_NO_GENERATION | $LIVE | -a -f -m200000 -w20
END
}

big_runs() {
	cat <<END
refs-crash-cut-owner     | safety | ok  | -DNF=3 -DSTART_OWNER -DNCRASH=1 -DNRESTART=1 -DNCUT=1 -DOWNER_CRASH | $SAFE |
refs-crash-cut-create    | safety | ok  | -DNF=3 -DSTART_CREATE -DNCRASH=1 -DNRESTART=1 -DNCUT=1 -DOWNER_CRASH | $SAFE |
refs-any-order-cut       | safety | ok  | -DNF=3 -DSTART_OWNER -DANY_ORDER -DNREPEAT=1 -DNCUT=1 | $SAFE |
credits-six              | credits | ok    | -DCREDITS=6 -DCLASS=4 | $LIVE | -a -f -m200000 -w20
END
}
