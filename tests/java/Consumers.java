// Kafka's own consumer, as a witness: reads partitions of a source and of its mirror at both isolation levels and says
// whether an application sees the same in both, record by record and offset by offset.
//
// Run by tests/src/java.rs with the source launcher of a JDK and Kafka's jars. A request is a line of fields with tabs
// between them: how to reach source and mirror, the first offset to read, or `-` where the logs begin at the same one, and
// topic and number of each partition. The answer is a line too: `equal`, records, aborted records; or `different`, or
// `failed`, and why. It ends when its standard input does.

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.record.TimestampType;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public final class Consumers {
    private static final String COMMITTED = "read_committed";
    private static final String UNCOMMITTED = "read_uncommitted";
    /** Without any progress; a broker that fails over is waited for. */
    private static final Duration PATIENCE = Duration.ofSeconds(30);
    /** Partitions that are read at a time: each question to a broker is about all of them. */
    private static final int AT_A_TIME = 50;
    /** Of one partition by one consumer that others have not got to. */
    private static final long HELD_BYTES = 256 * 1024;
    /** Of two clusters that most tests share, and of two that a test has for itself. */
    private static final int KEPT = 8;

    /** By side, address and isolation level; the one that was used last at the end. */
    private final LinkedHashMap<String, KafkaConsumer<byte[], byte[]>> open = new LinkedHashMap<>(KEPT, 0.75f, true);

    public static void main(String[] arguments) throws IOException {
        Consumers consumers = new Consumers();
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String request = requests.readLine(); request != null; request = requests.readLine()) {
            System.out.println(consumers.answer(request).replace('\n', ' '));
            System.out.flush();
        }
    }

    private String answer(String request) {
        String[] fields = request.split("\t");
        try {
            Long from = fields[2].equals("-") ? null : Long.valueOf(fields[2]);
            List<TopicPartition> partitions = new ArrayList<>();
            for (int index = 3; index < fields.length; index += 2) {
                partitions.add(new TopicPartition(fields[index], Integer.parseInt(fields[index + 1])));
            }
            Seen seen = new Seen();
            for (int first = 0; first < partitions.size(); first += AT_A_TIME) {
                int next = Math.min(first + AT_A_TIME, partitions.size());
                compare(fields[0], fields[1], partitions.subList(first, next), from, seen);
            }
            return "equal\t" + seen.records + "\t" + seen.aborted;
        } catch (Different difference) {
            return "different\t" + difference.getMessage();
        } catch (Exception | OutOfMemoryError failure) {
            return "failed\t" + failure;
        }
    }

    private void compare(String source, String mirror, List<TopicPartition> partitions, Long from, Seen seen)
            throws Different {
        Reader[] readers = {
            reader("source", source, COMMITTED, partitions),
            reader("source", source, UNCOMMITTED, partitions),
            reader("mirror", mirror, COMMITTED, partitions),
            reader("mirror", mirror, UNCOMMITTED, partitions),
        };
        List<Comparison> open = new ArrayList<>();
        for (TopicPartition partition : partitions) {
            Comparison comparison = new Comparison(readers, partition);
            comparison.checkRange(from);
            open.add(comparison);
        }
        for (Reader reader : readers) {
            reader.begin(from);
        }
        long progress = -1;
        long deadline = 0;
        while (true) {
            for (Iterator<Comparison> each = open.iterator(); each.hasNext();) {
                if (each.next().advance(seen)) {
                    each.remove();
                }
            }
            if (open.isEmpty()) {
                return;
            }
            long reached = 0;
            for (Reader reader : readers) {
                reached += reader.poll();
            }
            if (reached > progress) {
                progress = reached;
                deadline = System.nanoTime() + PATIENCE.toNanos();
            } else if (System.nanoTime() - deadline > 0) {
                throw new IllegalStateException(open.get(0).ours.partition + ": no progress");
            }
        }
    }

    private Reader reader(String side, String address, String isolation, List<TopicPartition> partitions) {
        // By side too: a cluster may be compared with itself.
        return new Reader(side + ", " + isolation, consumer(side + " " + address, address, isolation), partitions);
    }

    /** A consumer of this cluster at this level: a new one, or the one that has been used before. */
    private KafkaConsumer<byte[], byte[]> consumer(String user, String address, String isolation) {
        String name = user + " " + isolation;
        KafkaConsumer<byte[], byte[]> known = open.get(name);
        if (known != null) {
            return known;
        }
        if (open.size() == KEPT) {
            Iterator<KafkaConsumer<byte[], byte[]>> oldest = open.values().iterator();
            oldest.next().close();
            oldest.remove();
        }
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", address,
            "isolation.level", isolation,
            // A position that the log does not have is an error, not a reason to go elsewhere.
            "auto.offset.reset", "none",
            "enable.auto.commit", "false",
            "fetch.max.wait.ms", "10",
            "fetch.max.bytes", "8388608",
            "retry.backoff.ms", "20",
            "reconnect.backoff.ms", "20",
            "reconnect.backoff.max.ms", "200");
        KafkaConsumer<byte[], byte[]> made =
            new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        open.put(name, made);
        return made;
    }

    private static void same(ConsumerRecord<byte[], byte[]> wanted, ConsumerRecord<byte[], byte[]> record, Log log)
            throws Different {
        boolean bothOrNone = (wanted == null) == (record == null);
        require(bothOrNone, log, "has " + at(record) + " where the source has " + at(wanted));
        if (wanted == null) {
            return;
        }
        require(record.offset() == wanted.offset(), log, "has " + at(record) + " where the source has " + at(wanted));
        require(record.timestamp() == wanted.timestamp(), log, "has another timestamp at " + at(wanted));
        // Null is another key or value than an empty one.
        require(Arrays.equals(record.key(), wanted.key()), log, "has another key at " + at(wanted));
        require(Arrays.equals(record.value(), wanted.value()), log, "has another value at " + at(wanted));
        Header[] headers = record.headers().toArray();
        Header[] wantedHeaders = wanted.headers().toArray();
        boolean equal = headers.length == wantedHeaders.length;
        for (int index = 0; equal && index < headers.length; index++) {
            equal = headers[index].key().equals(wantedHeaders[index].key())
                && Arrays.equals(headers[index].value(), wantedHeaders[index].value());
        }
        require(equal, log, "has other headers at " + at(wanted));
    }

    private static String at(ConsumerRecord<byte[], byte[]> record) {
        return record == null ? "no further record" : "offset " + record.offset();
    }

    private static void require(boolean holds, Log log, String difference) throws Different {
        if (!holds) {
            throw new Different(log.partition + ": a consumer (" + log.name + ") " + difference);
        }
    }

    /** One consumer, and the logs that it reads. */
    private static final class Reader {
        private final KafkaConsumer<byte[], byte[]> consumer;
        private final Map<TopicPartition, Log> logs = new LinkedHashMap<>();

        Reader(String name, KafkaConsumer<byte[], byte[]> consumer, List<TopicPartition> partitions) {
            this.consumer = consumer;
            Map<TopicPartition, Long> starts = consumer.beginningOffsets(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            for (TopicPartition partition : partitions) {
                logs.put(partition, new Log(name, partition, starts.get(partition), ends.get(partition)));
            }
        }

        void begin(Long from) {
            // What was paused before must not stay so.
            consumer.unsubscribe();
            consumer.assign(logs.keySet());
            for (Log log : logs.values()) {
                log.position = from == null ? log.start : from;
                consumer.seek(log.partition, log.position);
            }
        }

        /** Reads on in the logs that have more to read and do not hold enough. Returns the sum of the positions. */
        long poll() {
            List<TopicPartition> paused = new ArrayList<>();
            List<TopicPartition> wanted = new ArrayList<>();
            for (Log log : logs.values()) {
                (log.position >= log.end || log.heldBytes > HELD_BYTES ? paused : wanted).add(log.partition);
            }
            if (!wanted.isEmpty()) {
                consumer.pause(paused);
                consumer.resume(wanted);
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    logs.get(new TopicPartition(record.topic(), record.partition())).hold(record);
                }
            }
            long sum = 0;
            for (Log log : logs.values()) {
                // Markers and what this level does not show are passed over.
                log.position = consumer.position(log.partition);
                sum += log.position;
            }
            return sum;
        }
    }

    /** One partition as one consumer sees it. */
    private static final class Log {
        private final String name;
        private final TopicPartition partition;
        private final long start;
        private final long end;
        private final ArrayDeque<ConsumerRecord<byte[], byte[]>> held = new ArrayDeque<>();
        private long heldBytes;
        private long position;

        Log(String name, TopicPartition partition, long start, long end) {
            this.name = name;
            this.partition = partition;
            this.start = start;
            this.end = end;
        }

        void hold(ConsumerRecord<byte[], byte[]> record) {
            held.add(record);
            heldBytes += size(record);
        }

        /** Whether {@link #next} is known: a record, or null at the end. */
        boolean knowsNext() {
            return !held.isEmpty() || position >= end;
        }

        ConsumerRecord<byte[], byte[]> next() {
            return held.peek();
        }

        void take() {
            heldBytes -= size(held.remove());
        }

        private static long size(ConsumerRecord<byte[], byte[]> record) {
            return 100L + Math.max(record.serializedKeySize(), 0) + Math.max(record.serializedValueSize(), 0);
        }
    }

    /** One partition in both clusters at both levels. */
    private static final class Comparison {
        private final Log ours;
        private final Log all;
        private final List<Log> mirrored;

        Comparison(Reader[] readers, TopicPartition partition) {
            ours = readers[0].logs.get(partition);
            all = readers[1].logs.get(partition);
            mirrored = List.of(readers[2].logs.get(partition), readers[3].logs.get(partition));
        }

        void checkRange(Long from) throws Different {
            for (Log log : List.of(all, mirrored.get(0), mirrored.get(1))) {
                boolean begins = from != null || log.start == ours.start;
                require(begins, log, "starts at " + log.start + ", the source at " + ours.start);
                require(log.end == ours.end, log, "ends at " + log.end + ", the source at " + ours.end);
            }
        }

        /** Compares as far as all have read; whether that was all. */
        boolean advance(Seen seen) throws Different {
            while (ours.knowsNext() && all.knowsNext() && mirrored.stream().allMatch(Log::knowsNext)) {
                ConsumerRecord<byte[], byte[]> wanted = ours.next();
                ConsumerRecord<byte[], byte[]> uncommitted = all.next();
                if (uncommitted != null && (wanted == null || uncommitted.offset() < wanted.offset())) {
                    all.take();
                    seen.aborted++;
                    continue;
                }
                same(wanted, uncommitted, all);
                for (Log log : mirrored) {
                    ConsumerRecord<byte[], byte[]> record = log.next();
                    same(wanted, record, log);
                    // A mirror keeps the time; where the source's is one of append, it is one of creation there.
                    boolean created = record == null || record.timestampType() == TimestampType.CREATE_TIME;
                    require(created, log, "has a time of append at " + at(record));
                }
                if (wanted == null) {
                    return true;
                }
                seen.records++;
                ours.take();
                all.take();
                mirrored.forEach(Log::take);
            }
            return false;
        }
    }

    /** Counts of what was compared. */
    private static final class Seen {
        private long records;
        private long aborted;
    }

    private static final class Different extends Exception {
        Different(String what) {
            super(what);
        }
    }
}
